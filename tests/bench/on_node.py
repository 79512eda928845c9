"""Runs on the node, in a privileged pod that sees all its processes; stamps what terraform does there.

The kernel tells it: inotify on the agent's terraform binary (opened: it is about to be exec'd), a pidfd
(readable: the process is gone). When an apply is gone, terraform's own log says when terraform itself saw
the interrupt. It looks only, and must never signal or delay anything. One line of JSON for each thing:

    {"event": "watching", "pod": ...}                              agents found; then, for each terraform:
    {"event": "exec" | "gone", "pod": ..., "pid": ..., "command": "init", "at": <time.time()>}
    {"event": "interrupted", ...}                                  the same, "at" by terraform's clock

Only the standard library: it is given as text to the Python of the agent's image. Started by `witness`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import struct
import time
from datetime import datetime
from typing import Any

_IN_OPEN, _IN_IGNORED = 0x20, 0x8000
_EVENT = struct.Struct("iIII")
_LOOK_FOR_AGENTS_S = 0.25
_LOOK_FOR_CHILD_S = 0.002
_CHILD_WITHIN_S = 0.5
_LOG_BYTES = 1_000_000
_SAW_INTERRUPT = "Interrupt received"
_OF_NO_RUN = "version"
"""The agent looks at its engine before any run, through a pipe."""


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode(errors="replace").split("\0")
    return []


def parent(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def agents(alive: list[int]) -> list[int]:
    """Between fork and exec a child of an agent looks like one, and is none."""
    alike = [pid for pid in alive if command_line(pid)[1:3] == ["-m", "terrahalt_agent"]]
    return [pid for pid in alike if parent(pid) not in alike]


class Node:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._inotify, select.EPOLLIN)
        self._agents: dict[int, str] = {}
        self._watches: dict[int, int] = {}
        self._opened: list[tuple[int, float]] = []
        self._seen: set[int] = set()
        self._runs: dict[int, tuple[dict[str, Any], int]] = {}

    def find_agents(self) -> None:
        alive = pids()
        for pid in agents(alive):
            if pid in self._agents:
                continue
            with contextlib.suppress(OSError):
                binary = f"/proc/{pid}/root/usr/local/bin/terraform".encode()
                watch = self._libc.inotify_add_watch(self._inotify, binary, _IN_OPEN)
                if watch < 0:
                    continue  # it is still starting
                with open(f"/proc/{pid}/root/etc/hostname") as file:
                    self._agents[pid] = file.read().strip()
                self._watches[watch] = pid
                tell("watching", pod=self._agents[pid])
        for pid in self._agents.keys() - set(alive):
            del self._agents[pid]
        self._seen &= set(alive)

    def read_opened(self) -> None:
        at, waiting = time.time(), os.read(self._inotify, 65536)
        while waiting:
            watch, mask, _, length = _EVENT.unpack_from(waiting)
            waiting = waiting[_EVENT.size + length :]
            if mask & _IN_IGNORED:
                self._watches.pop(watch, None)
            elif watch in self._watches:
                self._opened.append((self._watches[watch], at))

    def find_children(self) -> None:
        for pid in sorted(pids()):
            command = command_line(pid)
            if pid in self._seen or len(command) < 2 or os.path.basename(command[0]) != "terraform":
                continue
            for opened in self._opened:
                if opened[0] == parent(pid):
                    self._opened.remove(opened)
                    self._seen.add(pid)
                    if command[1] != _OF_NO_RUN:
                        self._follow(pid, command[1], *opened)
                    break
        too_old = time.time() - _CHILD_WITHIN_S
        self._opened = [opened for opened in self._opened if opened[1] > too_old]

    def _follow(self, pid: int, command: str, agent: int, at: float) -> None:
        run = {"pod": self._agents.get(agent, ""), "pid": pid, "command": command}
        tell("exec", **run, at=at)
        with contextlib.suppress(OSError):
            log = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY)
            pidfd = os.pidfd_open(pid)
            self._epoll.register(pidfd, select.EPOLLIN)
            self._runs[pidfd] = run, log

    def end(self, pidfd: int) -> None:
        at = time.time()
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        run, log = self._runs.pop(pidfd)
        text = os.pread(log, _LOG_BYTES, 0).decode(errors="replace")
        os.close(log)
        for line in text.splitlines():
            if _SAW_INTERRUPT in line:
                with contextlib.suppress(ValueError, KeyError):
                    stamp = json.loads(line)["@timestamp"].replace("Z", "+00:00")
                    tell("interrupted", **run, at=datetime.fromisoformat(stamp).timestamp())
                    break
        tell("gone", **run, at=at)

    def watch(self) -> None:
        next_look = 0.0
        while True:
            if time.monotonic() >= next_look:
                self.find_agents()
                next_look = time.monotonic() + _LOOK_FOR_AGENTS_S
            timeout = _LOOK_FOR_CHILD_S if self._opened else max(0.0, next_look - time.monotonic())
            for fd, _ in self._epoll.poll(timeout):
                if fd == self._inotify:
                    self.read_opened()
                else:
                    self.end(fd)
            if self._opened:
                self.find_children()


if __name__ == "__main__":
    Node().watch()
