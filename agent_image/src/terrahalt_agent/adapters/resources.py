"""How much memory the agent's container uses, of how much, and how full the disk of the working directory is.

Three small files of cgroup v2 and one statvfs. What can't be read is None: it is not watched.
Called by `driver` while a run is alive.
"""

from __future__ import annotations

import os
from pathlib import Path

from terrahalt_agent.core.resources import Disk, Memory

_FILE_CACHE = (b"active_file", b"inactive_file")


class Resources:
    def __init__(self, cgroup: Path, work: Path) -> None:
        self._cgroup = cgroup
        self._work = work

    def memory(self) -> Memory | None:
        """None: there is no limit.

        The kubelet's working set counts active file cache as used. That is too much here: a provider's
        executable that was read twice is active, 300 MB of a container's 400 without any need.
        """
        try:
            limit = (self._cgroup / "memory.max").read_bytes().strip()
            if limit == b"max":
                return None
            used = int((self._cgroup / "memory.current").read_bytes())
            lines = (self._cgroup / "memory.stat").read_bytes().splitlines()
            cached = sum(int(count) for name, count in map(bytes.split, lines) if name in _FILE_CACHE)
            return Memory(max(0, used - cached), int(limit))
        except (OSError, ValueError):
            return None

    def disk(self) -> Disk | None:
        try:
            found = os.statvfs(self._work)
        except OSError:
            return None
        return Disk((found.f_blocks - found.f_bfree) * found.f_frsize, found.f_bavail * found.f_frsize)
