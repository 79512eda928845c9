"""The operator as a process of this machine: started, timed by its own log, measured by /proc, ended by its id.

Called by `measure` and `plain`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import PROJECT

NAMESPACE = "terrahalt-scale-system"
_DEPOSED = "stopping: deposed"
_USUAL = "OS signals are ignored"
"""kopf's, at each start: it is no main thread."""
_STANDS_BY, _LEADS = " stands by", " leads with epoch "
_SOURCES = os.pathsep.join(str(PROJECT / part / "src") for part in ("protocol", "operator", "agent_image"))
_LEADS_WITHIN_S = 180.0
_ENDS_WITHIN_S = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


class OperatorEnded(Exception):
    """It is gone without having been asked; the text has its last lines."""


@dataclass(slots=True)
class Operator:
    process: asyncio.subprocess.Process
    began: float
    """When it was started; like all times here, seconds of the clock that all processes of the machine share."""
    stands_by: asyncio.Future[float]
    leads: asyncio.Future[float]
    complaints: list[str] = field(default_factory=list)
    """Warnings and errors of its log."""
    depositions: int = 0
    """How often it has lost its Lease, and begun anew in its place."""
    reader: asyncio.Task[None] | None = None

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self, what: str = "VmRSS") -> float:
        """`VmHWM`: the most that it ever was."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{what}:"))
        return int(line.split()[1]) / 1024

    async def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        if self.process.returncode is None:
            self.process.send_signal(by)
            try:
                async with asyncio.timeout(_ENDS_WITHIN_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        if self.reader is not None:
            await self.reader

    async def follow(self, log: Path) -> None:
        assert self.process.stdout is not None
        last = ""
        with log.open("a", encoding="utf-8") as file:
            while line := (await self.process.stdout.readline()).decode(errors="replace"):
                at = time.monotonic()
                file.write(line)
                last = line.strip()
                if _STANDS_BY in line and not self.stands_by.done():
                    self.stands_by.set_result(at)
                elif _LEADS in line and not self.leads.done():
                    self.leads.set_result(at)
                elif _DEPOSED in line:
                    self.depositions += 1
                elif (" WARNING " in line or " ERROR " in line) and _USUAL not in line:
                    self.complaints.append(last)
        for awaited in (self.stands_by, self.leads):
            if not awaited.done():
                awaited.set_exception(OperatorEnded(f"the operator ended before it led: {last or 'it said nothing'}"))
                awaited.exception()  # whoever waits for it gets it; where nobody does, it is no news


async def start(environment: Mapping[str, str], log: Path, profile: Path | None = None) -> Operator:
    """Returns once it leads. Raises OperatorEnded, TimeoutError."""
    command = ["-m", "terrahalt_operator"] if profile is None else ["-m", "tests.bench.scale.profiled", str(profile)]
    others = {k: v for k, v in os.environ.items() if not k.startswith(("TERRAHALT_", "KUBERNETES_"))}
    own = {
        "PYTHONPATH": os.pathsep.join([_SOURCES, str(PROJECT)]),
        "PYTHONUNBUFFERED": "1",
        "TERRAHALT_NAMESPACE": NAMESPACE,
        "TERRAHALT_AGENT_IMAGE": "terrahalt-agent:simulated",
        "TERRAHALT_POD_NAME": "bench-scale",
    }
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**others, **environment, **own},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the driver
        limit=2**20,
    )
    operator = Operator(process, began, loop.create_future(), loop.create_future())
    operator.reader = asyncio.create_task(operator.follow(log), name="operator's log")
    try:
        async with asyncio.timeout(_LEADS_WITHIN_S):
            await asyncio.shield(operator.leads)
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await operator.end()
        raise
    return operator
