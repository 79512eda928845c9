"""Leaves nothing of a run for the next one of this agent: files, shared memory, what its log still holds.

Only what a process of the run could have written to is looked at; the root filesystem of a pod is read-only.
Whatever is left all the same is an error, and the agent takes no other run. Called by `driver` between two
runs, when no process of the run is alive.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.pod_log import PodLog
from terrahalt_agent.adapters.provider_cache import ProviderCache
from terrahalt_agent.adapters.termination_log import clear_final_report

_FLUSH_S = 10.0
_SWEEP_S = 5.0
IPC = (Path("/proc/sysvipc/shm"), Path("/proc/sysvipc/msg"), Path("/proc/sysvipc/sem"))
"""What processes can leave in the kernel: in a pod they are of this pod alone."""
_ALL_RIGHTS = 0o700


class UncleanError(Exception):
    """Something of the run is left; the text says what."""


class CleanRoom:
    def __init__(
        self,
        work: Path,
        scratch: Collection[Path],
        *,
        kept: Collection[Path],
        ipc: Collection[Path],
        cache: ProviderCache | None,
        descendants: Descendants,
        pod_log: PodLog,
        termination_log: str,
    ) -> None:
        """`scratch`: other directories that runs write to. `kept`: what is no run's. `ipc`: lists that have to be
        empty; none outside of a pod, where they are not the agent's alone."""
        self._work, self._scratch, self._kept, self._ipc, self._cache = work, scratch, frozenset(kept), ipc, cache
        self._descendants, self._pod_log, self._termination_log = descendants, pod_log, termination_log

    def restore(self) -> None:
        """Blocks. Raises UncleanError, or OSError where something can't be removed."""
        if alive := self._descendants.sweep(_SWEEP_S).alive:
            raise UncleanError(f"processes {alive} are alive")
        if self._cache is not None and self._cache.is_in_use:
            # One thread of few waits for a volume that hangs: a sweep of the runs to come needs another one.
            raise UncleanError("the volume of the pool's providers does not answer")
        for folder in (self._work, *self._scratch):
            _empty(folder, self._kept)
        if left := [str(path) for path in self._ipc if _has_objects(path)]:
            raise UncleanError(f"{', '.join(left)}: not empty")
        clear_final_report(self._termination_log)
        # Its lines are redacted as they are written, so its secrets may be forgotten only then.
        if not self._pod_log.flush(_FLUSH_S):
            raise UncleanError("nobody reads the pod's log")


def _empty(folder: Path, kept: Collection[Path]) -> None:
    """Of all that is ours and not mounted there: a run has no other user's rights, so it has left nothing else."""
    ours = os.getuid(), os.stat(folder).st_dev
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if Path(entry.path) not in kept and _owner(entry) == ours]
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, _ALL_RIGHTS)  # whoever wrote it may have taken them from himself
            _empty(Path(entry.path), kept)
            if not any(path.is_relative_to(entry.path) for path in kept):
                os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


def _owner(entry: os.DirEntry[str]) -> tuple[int, int]:
    about = entry.stat(follow_symlinks=False)
    return about.st_uid, about.st_dev


def _has_objects(path: Path) -> bool:
    """Below the line with the names of the columns; a kernel without such objects has no list."""
    return path.exists() and len(path.read_text().splitlines()) > 1
