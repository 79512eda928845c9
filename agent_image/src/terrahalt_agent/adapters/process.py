"""One process of a run, terraform or git: started in its own session, signalled by pidfd, reaped by us alone.

Never asyncio's subprocess: it drops long lines, waits for whoever holds the pipe, and its reaper races
with ours. stdout goes to a file, so nobody's reading can block or kill it. Called by `driver`
and `git` on the event loop's thread only: a child that ends before it is known as ours would lose its code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terrahalt_agent.adapters.descendants import Descendants

_STOP_POLL_S = 0.002
_BUSY_S = 0.002
"""CPU time between two looks; terraform and a provider that only wait take less than a tenth of it."""


@dataclass(frozen=True, slots=True)
class Said:
    exit_code: int | None
    """None: it did not end in time."""
    text: str = ""


async def ask(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    log: Path,
    descendants: Descendants,
    within_s: float,
    sweep_s: float,
    errors: Path | None = None,
) -> Said:
    """What a command says; nothing of it is alive afterwards. `errors`: where its stderr goes, if not there too."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    process = ChildProcess(
        argv, cwd=cwd, env=env, log=log, descendants=descendants, on_exit=ended.set_result, errors=errors
    )
    try:
        async with asyncio.timeout(within_s):
            exit_code = await asyncio.shield(ended)
    except TimeoutError:
        return Said(None)
    finally:
        process.send(signal.SIGKILL)
        await asyncio.to_thread(descendants.sweep, sweep_s)
    return Said(exit_code, await asyncio.to_thread(log.read_text, errors="replace"))


class ChildProcess:
    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        log: Path,
        descendants: Descendants,
        on_exit: Callable[[int], None],
        errors: Path | None = None,
    ) -> None:
        """Starts it. Raises OSError where that is not possible; then nothing is left behind."""
        self._loop = asyncio.get_running_loop()
        self._descendants = descendants
        self._on_exit = on_exit
        self._seen_work_s = 0.0
        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("ab"))
            self._popen = subprocess.Popen(
                argv,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if errors is None else files.enter_context(errors.open("ab")),
                start_new_session=True,
            )
        self.pid = self._popen.pid
        descendants.own(self.pid)
        # Safe although it comes later: the pid is not given away before we have waited for it.
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def is_alive(self) -> bool:
        return self._popen.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Nothing where it has ended."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def look(self) -> tuple[int, bool]:
        """How many others of the run are alive, and whether anything was at work since the look before."""
        alive, is_waiting, work_s = self._descendants.look(spare=self.pid)
        is_busy = is_waiting or work_s > self._seen_work_s + _BUSY_S
        self._seen_work_s = work_s
        return alive, is_busy

    def kill_others(self) -> int:
        """SIGKILL to everything of the run but this one; the number of processes that were hit."""
        return self._descendants.kill(spare=self.pid)

    async def freeze(self, within_s: float) -> None:
        """SIGSTOP, and wait until it has taken effect: a thread may be in the middle of a write."""
        self.send(signal.SIGSTOP)
        until_s = self._loop.time() + within_s
        while self.is_alive and not self._descendants.is_stopped(self.pid):
            if self._loop.time() > until_s:
                return
            await asyncio.sleep(_STOP_POLL_S)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        exit_code = self._popen.wait()
        os.close(self._pidfd)
        self._descendants.disown(self.pid)
        self._on_exit(exit_code)
