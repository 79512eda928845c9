"""`kubectl terrahalt` as a user starts it: with output that is read by a program, or in a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

WITHIN_S = 60.0
"""For one thing to be seen, on a busy machine."""


@dataclass(frozen=True)
class Program:
    path: Path
    environment: Mapping[str, str]
    namespace: str = ""

    def words(self, *arguments: str) -> list[str]:
        where = ["--namespace", self.namespace] if self.namespace else []
        return [str(self.path), *arguments, *where]

    def attempt(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*arguments),
            input=stdin,
            env=self._whole(),
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """What it prints on stdout."""
        done = self.attempt(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """What it says when it fails."""
        done = self.attempt(*arguments)
        assert done.returncode == 1, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stderr

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Without a terminal; a test that waits in vain for what it says goes on when it is killed."""
        with subprocess.Popen(
            self.words(*arguments),
            env=self._whole(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            limit = threading.Timer(WITHIN_S, child.kill)
            limit.start()
            try:
                yield child
            finally:
                limit.cancel()
                child.kill()

    @contextmanager
    def at_a_terminal(self, *arguments: str, **variables: str) -> Iterator[Terminal]:
        pid, end = pty.fork()
        if pid == 0:
            words = self.words(*arguments)
            os.execve(words[0], words, {**self._whole(), "TERM": "xterm", **variables})
        terminal = Terminal(pid, end)
        try:
            yield terminal
        finally:
            terminal.close()

    def _whole(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        return {**kept, **self.environment}


@dataclass
class Terminal:
    """A person's: what is on the screen, and the keys."""

    pid: int
    end: int
    screen: str = ""
    exit_code: int | None = None
    _read: int = field(default=0, repr=False)

    def until(self, words: str) -> None:
        """Something new on the screen."""
        deadline = time.monotonic() + WITHIN_S
        while (found := self.screen.find(words, self._read)) < 0:
            assert self._look(deadline), f"never on the screen: {words!r}\n{self.screen}"
        self._read = found + len(words)

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def until_ended(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + WITHIN_S
        while self._look(deadline):
            pass
        if self.exit_code is None:
            assert time.monotonic() < deadline, f"did not end\n{self.screen}"
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    @property
    def text(self) -> str:
        """The screen without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.screen).replace("\r\n", "\n")

    def _look(self, deadline: float) -> bool:
        """False: nothing more comes, or not in time."""
        readable, _, _ = select.select([self.end], [], [], max(0, deadline - time.monotonic()))
        if not readable:
            return False
        try:
            content = os.read(self.end, 65536)
        except OSError:  # how Linux says that nobody has the other end any more
            content = b""
        self.screen += content.decode(errors="replace")
        return bool(content)

    def close(self) -> None:
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.end)
