"""When memory or disk make a run end before the kernel or the kubelet ends it, and what a person reads of that.

Only a share that is left is judged here; who uses it is not known. Called by `run`; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from terrahalt_protocol.messages import SUPERSEDED

MEMORY_SHARE = 0.90
DISK_SHARE = 0.85
"""The kubelet evicts at 90 % of the node's disk, and then gives seconds, whatever the grace."""
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a run is ended, if neither by a person nor by a timeout: the result's reason, and what is to know of it."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Memory:
    used_bytes: int
    """Without file cache, which the kernel takes back by itself."""
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    used_bytes: int
    free_bytes: int
    """For the agent's user."""

    @property
    def used_share(self) -> float:
        return self.used_bytes / max(1, self.used_bytes + self.free_bytes)


def out_of_memory(memory: Memory | None) -> Cause | None:
    if memory is None or memory.used_bytes <= MEMORY_SHARE * memory.limit_bytes:
        return None
    used, limit = memory.used_bytes // _MIB, memory.limit_bytes // _MIB
    text = f"{used} MiB of the agent's {limit} MiB of memory were in use: raise its memory limit, or do less at a time"
    return Cause("OutOfMemory", text)


def disk_pressure(disk: Disk | None, at_begin: Disk | None) -> Cause | None:
    """A disk that was rather full before the run is others' doing: then the run may take half of what was left."""
    if disk is None:
        return None
    share = max(DISK_SHARE, (1 + at_begin.used_share) / 2) if at_begin is not None else DISK_SHARE
    if disk.used_share <= share:
        return None
    used, free = round(100 * disk.used_share), disk.free_bytes // _MIB
    text = (
        f"the disk of the working directory was {used} % full, {free} MiB were free: write less, or give its node more"
    )
    return Cause("DiskPressure", text)


def operator_lost(after_s: float) -> Cause:
    text = f"no operator was connected for {after_s:.0f} s, and onOperatorLoss of the pool is Cancel"
    return Cause("OperatorLost", text)


def superseded(by: str) -> Cause:
    return Cause(SUPERSEDED, f"task {by} takes its place")
