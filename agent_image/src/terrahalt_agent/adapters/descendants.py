"""Everything that runs below this agent: found by parent, killed until the kernel says there is none.

Sessions, double forks and an emptied environment change nothing: the agent is the subreaper (or PID 1),
so each orphan becomes its child. The proof of emptiness is `waitid` failing with ECHILD: no child,
alive or dead, so no descendant; a scan of /proc alone can miss one that forks meanwhile. What
`kubectl exec` started is not a descendant and is left alone. Called by `process`, `driver`, and `app`
(the subreaper).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_S = 0.001
_KILL_ALL_AFTER_S = 2.0


def become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"can't become the subreaper of what terraform starts: {os.strerror(code)}")


@dataclass(frozen=True, slots=True)
class Swept:
    killed: int
    alive: tuple[int, ...]
    """Empty: the kernel says that there is none."""


class Descendants:
    def __init__(self) -> None:
        self._owned: set[int] = set()

    def own(self, pid: int) -> None:
        """`process` waits for this one; it is never reaped here."""
        self._owned.add(pid)

    def disown(self, pid: int) -> None:
        self._owned.discard(pid)

    def look(self, spare: int) -> tuple[int, bool, float]:
        """Living descendants but `spare`; whether a thread of any wants a CPU now; the seconds for which
        all their threads have ever computed or waited for a CPU."""
        alive, is_waiting, work_s = 0, False, 0.0
        for pid, state in _tree().items():
            alive += pid != spare and state != "Z"
            for thread in _threads(pid):
                wants_cpu, spent_s = _work(thread)
                is_waiting, work_s = is_waiting or wants_cpu, work_s + spent_s
        return alive, is_waiting, work_s

    def kill(self, spare: int | None = None) -> int:
        """One round of SIGKILL to every descendant but `spare`."""
        hit = 0
        for pid, state in _tree().items():
            if pid != spare and state != "Z":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hit += 1
        return hit

    def sweep(self, within_s: float) -> Swept:
        """Kills and reaps until there is nothing; blocks up to `within_s`, so call it in a thread."""
        begun_s = time.monotonic()
        killed = 0
        while True:
            killed += self.kill()
            self.reap_orphans()
            if _has_no_child():
                return Swept(killed, ())
            waited_s = time.monotonic() - begun_s
            if waited_s > within_s:
                return Swept(killed, tuple(_tree()))
            if waited_s > _KILL_ALL_AFTER_S and os.getpid() == 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # the container's own pid namespace: all but us
            time.sleep(_PAUSE_S)

    def reap_orphans(self) -> None:
        """Zombies that came to us from a parent that died; never one that `process` waits for."""
        for pid, state in _tree(only_children=True).items():
            if state == "Z" and pid not in self._owned:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    @staticmethod
    def is_stopped(pid: int) -> bool:
        found = _stat(pid)
        return found is None or found[1] in "TtZX"


def _has_no_child() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _tree(*, only_children: bool = False) -> dict[int, str]:
    """pid -> state of all descendants of this process."""
    states: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _stat(int(name))) is not None:
            parent, states[int(name)] = found
            children.setdefault(parent, []).append(int(name))
    if only_children:
        return {pid: states[pid] for pid in children.get(os.getpid(), [])}
    found_pids: dict[int, str] = {}
    todo = [os.getpid()]
    while todo:
        for pid in children.get(todo.pop(), []):
            if pid not in found_pids:
                found_pids[pid] = states[pid]
                todo.append(pid)
    return found_pids


def _stat(pid: int) -> tuple[int, str] | None:
    """(parent, state), or None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold blanks and brackets; what follows the last bracket is regular.
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[1]), fields[0].decode()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None


def _threads(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _work(thread: str) -> tuple[bool, float]:
    """Whether it runs or waits for a CPU; the seconds it has run and waited (0 where the kernel does not count)."""
    try:
        with open(f"{thread}/stat", "rb") as file:
            wants_cpu = file.read().rpartition(b")")[2].split()[0] == b"R"
        with open(f"{thread}/schedstat", "rb") as file:
            ran_ns, waited_ns, _ = file.read().split()
        return wants_cpu, (int(ran_ns) + int(waited_ns)) / 1e9
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return False, 0.0
