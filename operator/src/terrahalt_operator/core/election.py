"""Who leads: what one operator makes of the leader's Lease, on its own monotonic clock alone.

Who leads stops RENEW_DEADLINE_S after it *sent* the last write that was answered; another takes over LEASE_S
after it *saw* the Lease change last, and only while the Lease is still as it saw it. Seeing comes after sending,
so the one has stopped a second before the other begins, whatever their clocks say; one that was frozen has
stopped too when it thaws. A Lease that somebody deleted is made anew without a holder, and that one is waited for as
long: who leads may not know yet, and a request to create it as its holder might arrive when another has had it
already. Must never read the Lease's own times, and never begin a second term: its process ends.
Called by `adapters.leadership`, which says what was seen and carries out what `due` asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

LEASE_S = 4.0
RENEW_DEADLINE_S = 3.0
"""A quarter less than LEASE_S: room for clocks that run at different speeds."""
RENEW_INTERVAL_S = 1.0
REQUEST_DEADLINE_S = RENEW_DEADLINE_S - RENEW_INTERVAL_S
"""A slow answer is as good as a quick one: thousands of cancels at once can make them slow."""
SECOND_TRY_AFTER_S = REQUEST_DEADLINE_S / 2
"""A renewal that hangs leaves time for another one beside it."""


@dataclass(frozen=True, slots=True)
class LeaderLease:
    version: int
    """The resourceVersion: one counter stamps every write in the cluster, to a Lease made anew as well."""
    holder: str
    epoch: int
    lasts_s: float = LEASE_S
    """As its holder says: one of another version may renew less often."""

    @property
    def is_released(self) -> bool:
        """By who led: the epoch stays. A Lease without one, somebody else made."""
        return not self.holder and self.epoch > 0


@dataclass(frozen=True, slots=True)
class Create:
    """There is to be a Lease, which nobody holds."""


@dataclass(frozen=True, slots=True)
class Write:
    """The Lease is to be ours with this epoch, if nobody has changed it since."""

    replaces: LeaderLease
    epoch: int


@dataclass(frozen=True, slots=True)
class Wait:
    until: float
    """Or until something is seen."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The term is over, and with it the process."""

    why: str


@dataclass(frozen=True, slots=True)
class Election:
    identity: str
    """Of this very process: one that was started anew in the same pod is another."""
    lease: LeaderLease | None = None
    """As it was last; None: there is none, or none was seen yet."""
    seen_at: float | None = None
    """When it was first seen like that."""
    version: int = 0
    """The latest that anything was seen at: what is older is late news."""
    highest_epoch: int = 0
    epoch: int = 0
    """Of the own term; 0: it has not begun."""
    leads_until: float = -math.inf

    # ---- what was seen

    def saw(self, lease: LeaderLease, now: float) -> Election:
        if lease.version <= self.version:
            return self
        highest = max(self.highest_epoch, lease.epoch)
        return replace(self, lease=lease, seen_at=now, version=lease.version, highest_epoch=highest)

    def saw_none(self, version: int, now: float) -> Election:
        """At this version of the cluster."""
        if version < self.version:
            return self
        return replace(self, lease=None, seen_at=now, version=version)

    def wrote(self, lease: LeaderLease, sent_at: float, now: float) -> Election:
        """The answer to our own write. Whatever it was held up by, the term counts from when it was sent."""
        seen = self.saw(lease, now)
        return replace(seen, epoch=max(lease.epoch, self.epoch), leads_until=sent_at + RENEW_DEADLINE_S)

    # ---- what follows

    def leads(self, now: float) -> bool:
        return now < self.leads_until and not self._is_anothers

    @property
    def free_at(self) -> float:
        """From when on another one may take the Lease, unless it changes; inf: none was seen, or there is none."""
        if self.lease is None or self.seen_at is None:
            return math.inf
        return self.seen_at + (0.0 if self.lease.is_released else max(LEASE_S, self.lease.lasts_s))

    def due(self, now: float) -> Create | Write | Wait | Lost:
        if self.epoch and (why := self._lost(now)):
            return Lost(why)
        if self.seen_at is None:
            return Wait(math.inf)
        if self.lease is None:
            return Create()
        if self.epoch:
            is_ours = self.lease.holder == self.identity
            renew_at = self.leads_until - RENEW_DEADLINE_S + RENEW_INTERVAL_S if is_ours else now
            return self._write_at(renew_at, now, max(self.epoch, self.lease.epoch))
        if self.lease.holder == self.identity:
            # A write of ours whose answer was lost.
            return self._write_at(now, now, self.lease.epoch)
        return self._write_at(self.free_at, now, self.highest_epoch + 1)

    def due_above(self, reported: int) -> Create | Write:
        """What puts the own epoch above one that an agent has seen."""
        return Write(self.lease, max(self.highest_epoch, reported) + 1) if self.lease else Create()

    @property
    def _is_anothers(self) -> bool:
        """One that nobody holds and nobody released, somebody made: who leads takes it back."""
        lease = self.lease
        return lease is not None and lease.holder != self.identity and (bool(lease.holder) or lease.is_released)

    def _lost(self, now: float) -> str:
        """Why the term is over; empty: it is not."""
        if self._is_anothers:
            assert self.lease is not None
            return f"{self.lease.holder} leads" if self.lease.holder else "somebody released the Lease"
        return "" if now < self.leads_until else f"the Lease was not renewed within {RENEW_DEADLINE_S:g} s"

    def _write_at(self, moment: float, now: float, epoch: int) -> Write | Wait:
        assert self.lease is not None
        return Write(self.lease, epoch) if now >= moment else Wait(moment)
