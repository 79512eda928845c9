"""The Lease of the operator that leads: seen by a watch, taken, renewed, released; and the epoch in it.

What is due, `core.election` decides. Here it is carried out by writes that hold for one version of the Lease
only, one after another, and asked for again at each write and each command (`check`): an operator that was
frozen and comes back finds its time over before it does anything. Commands carry the epoch too, and agents refuse
an older one (invariant 8). Called by `app` (the term), `agents` (the epochs that agents report), `world` and
`reconciler` (the epoch).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable

from terrahalt_operator.adapters.cluster import LEASES, Cluster, Json
from terrahalt_operator.core import names
from terrahalt_operator.core.election import (
    LEASE_S,
    RENEW_DEADLINE_S,
    REQUEST_DEADLINE_S,
    SECOND_TRY_AFTER_S,
    Create,
    Election,
    LeaderLease,
    Lost,
    Wait,
    Write,
)
from terrahalt_operator.errors import AlreadyExists, ClusterError, Conflict, Deposed, NotFound, Unreachable

log = logging.getLogger(__name__)

AGAIN_AFTER_S = 0.1
"""After a request that failed at once; one that hung has waited long enough."""
OTHER_ANSWER_WITHIN_S = 0.25
"""After one of two tries has found the Lease changed."""
RELEASE_TRIES = 3
"""Against a renewal whose answer was lost, or somebody's label."""
SILENCE_S = 2 * LEASE_S
"""A Lease that is renewed is never as quiet as that: then it is the watch that hangs."""


class Leadership:
    def __init__(self, cluster: Cluster, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        """`clock` goes on while the process, or the whole machine, sleeps."""
        self._cluster, self._namespace, self._clock = cluster.within(REQUEST_DEADLINE_S), namespace, clock
        self._election = Election(identity)
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._has_resigned = False
        self.begun = asyncio.Event()
        """Set once the term of this process has begun; it has one at most."""

    @property
    def epoch(self) -> int:
        return self._election.epoch

    @property
    def leads(self) -> bool:
        return not self._has_resigned and self._election.leads(self._clock())

    @property
    def holder(self) -> str:
        """Who leads, as far as is known here."""
        return self._election.lease.holder if self._election.lease else ""

    @property
    def renewal_age_s(self) -> float | None:
        """None: it never led."""
        return self._clock() - self._election.leads_until + RENEW_DEADLINE_S if self.epoch else None

    def check(self) -> None:
        if not self.leads:
            raise Deposed("this operator does not lead")

    # ---- seeing

    async def follow(self) -> None:
        """Sees all that happens to the Lease; until cancelled."""
        while True:
            try:
                version = await self._look()
                watch = self._cluster.watch(LEASES, self._namespace, names.LEADER_LEASE, version, silence_s=SILENCE_S)
                async with contextlib.aclosing(watch):
                    async for is_gone, obj in watch:
                        if is_gone:
                            self._saw_none(obj["metadata"]["resourceVersion"])
                        else:
                            self._saw(obj)
            except ClusterError as error:
                log.info("the leader's Lease can't be watched: %s; trying again", error)
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _look(self) -> str:
        found, version = await self._cluster.list(LEASES, self._namespace, name=names.LEADER_LEASE)
        if found:
            self._saw(found[0])
        else:
            self._saw_none(version)
        return version

    def _saw(self, obj: Json) -> None:
        self._is(self._election.saw(_read(obj), self._clock()))

    def _saw_none(self, version: str) -> None:
        self._is(self._election.saw_none(int(version), self._clock()))

    def _is(self, election: Election) -> None:
        self._election = election
        self._changed.set()

    # ---- leading

    async def is_free(self, for_s: float) -> None:
        """Returns once nobody has led for so long."""
        while (left_s := self._election.free_at + for_s - self._clock()) > 0:
            self._changed.clear()
            await self._until(self._clock() + left_s)

    async def is_led(self) -> None:
        """Returns once another one was seen to take the Lease, or to renew it."""
        first: LeaderLease | None = None
        while True:
            lease = self._election.lease
            first = first or lease
            if lease is not None and lease != first and lease.holder not in ("", self._election.identity):
                return
            self._changed.clear()
            await self._changed.wait()

    async def stand(self) -> str:
        """Until the term is over: why it is; empty: it has resigned."""
        while not self._has_resigned:
            self._changed.clear()
            match self._election.due(self._clock()):
                case Lost(why):
                    return why
                case Wait(until):
                    await self._until(until)
                case Create() | Write():
                    async with self._writing:
                        # Somebody may have written meanwhile, for an agent that reported a higher epoch.
                        due = self._election.due(self._clock())
                        if isinstance(due, Create | Write) and not self._has_resigned:
                            await self._try(due)
        return ""

    async def raise_above(self, reported: int) -> None:
        """And over an epoch that an agent has seen: the Lease may have been deleted and made anew."""
        async with self._writing:
            while self.epoch <= reported:
                self.check()
                await self._try(self._election.due_above(reported))

    def resign(self) -> None:
        """From now on `check` refuses; the Lease stays ours until `release`, or until it runs out."""
        self._has_resigned = True

    async def release(self) -> None:
        """Lets the next one begin at once, if the Lease is still ours; does its best, for a second or two."""
        async with self._writing:
            try:
                for _ in range(RELEASE_TRIES):
                    lease = self._election.lease
                    if lease is None or lease.holder != self._election.identity or not self.epoch:
                        return
                    try:
                        self._saw(await self._write(lease, "", self.epoch))
                    except Conflict:
                        await self._look()
            except ClusterError as error:
                log.warning("the leader's Lease was not released: %s", error)

    async def _until(self, moment: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(0.0, moment - self._clock()), LEASE_S)):
                await self._changed.wait()

    async def _try(self, due: Create | Write) -> None:
        try:
            if isinstance(due, Create):
                self._saw(await self._create())
                return
            lease, sent_at = await self._write_for(due)
        except (AlreadyExists, Conflict, NotFound):
            with contextlib.suppress(ClusterError):
                await self._look()
        except ClusterError as error:
            log.warning("the leader's Lease can't be written: %s", error)
            await asyncio.sleep(AGAIN_AFTER_S)
        else:
            self._is(self._election.wrote(lease, sent_at, self._clock()))
            if self.epoch:
                self.begun.set()

    async def _write_for(self, due: Write) -> tuple[LeaderLease, float]:
        """The Lease as written, and when that was sent. One that hangs gets another beside it, by another connection:
        the first answer counts, and only one of them can hold. Raises ClusterError."""

        async def attempt() -> tuple[LeaderLease, float]:
            sent_at = self._clock()
            return _read(await self._write(due.replaces, self._election.identity, due.epoch)), sent_at

        tries = [asyncio.create_task(attempt(), name="Lease")]
        failed: ClusterError | None = None
        try:
            await asyncio.wait(tries, timeout=SECOND_TRY_AFTER_S)
            if not tries[0].done():
                tries.append(asyncio.create_task(attempt(), name="Lease, second try"))
            async with asyncio.timeout(REQUEST_DEADLINE_S - SECOND_TRY_AFTER_S) as limit:
                for answer in asyncio.as_completed(tries):
                    try:
                        return await answer
                    except Unreachable as error:
                        failed = failed or error
                    except ClusterError as error:
                        failed = error
                        # It may be the other one that has changed the Lease, and that is answered any moment.
                        ends = asyncio.get_running_loop().time() + OTHER_ANSWER_WITHIN_S
                        limit.reschedule(min(ends, limit.when() or ends))
        except TimeoutError:
            failed = failed or Unreachable("the API server did not answer")
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        assert failed is not None
        raise failed

    async def _create(self) -> Json:
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        body = kind | {"metadata": {"name": names.LEADER_LEASE}, "spec": {}}
        return await self._cluster.create(LEASES, self._namespace, body)

    async def _write(self, replaces: LeaderLease, holder: str, epoch: int) -> Json:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        # The times are for people and their tools; nobody here reads them.
        spec: Json = {"holderIdentity": holder, "renewTime": now, "leaseDurationSeconds": int(LEASE_S)}
        if replaces.holder != holder:
            spec["acquireTime"] = now
        metadata = {
            "resourceVersion": str(replaces.version),
            "annotations": {names.EPOCH_ANNOTATION: str(epoch)},
        }
        body = {"metadata": metadata, "spec": spec}
        return await self._cluster.patch(LEASES, self._namespace, names.LEADER_LEASE, body)


def _read(obj: Json) -> LeaderLease:
    """What somebody wrote who is no operator reads as if it said nothing."""
    spec, annotations = obj.get("spec") or {}, obj["metadata"].get("annotations") or {}
    epoch = str(annotations.get(names.EPOCH_ANNOTATION, ""))
    return LeaderLease(
        version=int(obj["metadata"]["resourceVersion"]),
        holder=spec.get("holderIdentity") or "",
        epoch=int(epoch) if epoch.isdecimal() else 0,
        lasts_s=float(spec.get("leaseDurationSeconds") or LEASE_S),
    )
