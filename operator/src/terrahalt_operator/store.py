"""What the operator has last seen of the cluster: objects by their keys, never older than seen before.

Filled by lists at the start and now and then, by the watch, and by the answers to our own writes, in
any order: the highest resourceVersion stays. Holds no rule of the product. Called by `world`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from terrahalt_operator.adapters import objects
from terrahalt_operator.core import pod, pod_template
from terrahalt_operator.core.identity import is_of_another_shard
from terrahalt_operator.core.model import Claim, Pool

K = TypeVar("K")
V = TypeVar("V")
Json = dict[str, Any]


REMEMBERED_GONE = 10_000
KEPT = frozenset(("name", "namespace", "uid", "resourceVersion", "finalizers", "ownerReferences"))


def _remember(gone: dict[str, V], what: str, value: V) -> None:
    gone[what] = value
    if len(gone) > REMEMBERED_GONE:
        del gone[next(iter(gone))]


class Shelf(Generic[V]):
    """Objects of one kind, by UID: as the core's value, and as JSON what is needed to change them, KEPT of their
    metadata and, `with_status`, their status. What is gone comes back only by what was said of it later: it may have
    been out of sight, without the label that is asked for."""

    def __init__(self, *, with_status: bool = False) -> None:
        self._with_status = with_status
        self.values: dict[str, V] = {}
        self._texts: dict[str, bytes] = {}
        """As bytes they take about half of what dictionaries would: ten thousand tasks are kept."""
        self._versions: dict[str, int] = {}
        self._gone: dict[str, float] = {}
        """UID -> the version at which it was gone."""

    def raw(self, uid: str) -> Json | None:
        """A copy of what is kept of it beside its value."""
        text = self._texts.get(uid)
        return None if text is None else msgspec.json.decode(text)

    def knows(self, obj: Json) -> bool:
        """It is no news: older than the one here or the same, or a late answer about one that is gone."""
        return self.has(obj["metadata"]["uid"], objects.version(obj))

    def has(self, uid: str, version: int) -> bool:
        """The same of an object of which no more is known."""
        return max(self._versions.get(uid, -1), self._gone.get(uid, -1)) >= version

    def is_gone(self, uid: str) -> bool:
        return uid in self._gone

    def put(self, obj: Json, value: V) -> bool:
        """Whether it was news."""
        if self.knows(obj):
            return False
        uid = obj["metadata"]["uid"]
        kept = {"metadata": {key: part for key, part in obj["metadata"].items() if key in KEPT}}
        if self._with_status and "status" in obj:
            kept["status"] = obj["status"]
        self.values[uid], self._texts[uid] = value, msgspec.json.encode(kept)
        self._versions[uid] = objects.version(obj)
        self._gone.pop(uid, None)
        return True

    def remove(self, uid: str, version: float = math.inf) -> V | None:
        """`version`: at which it was gone; where it was seen to be there since, it stays."""
        if self._versions.get(uid, -1) > version:
            return None
        _remember(self._gone, uid, version)
        self._texts.pop(uid, None)
        self._versions.pop(uid, None)
        return self.values.pop(uid, None)

    def gone(self, present: Iterable[str], list_version: int) -> list[str]:
        """UIDs here that a list taken at this version did not have, and that are no newer than it."""
        known = set(present)
        return [uid for uid, version in self._versions.items() if uid not in known and version <= list_version]


class Groups(dict[K, dict[str, V]]):
    """Values by UID, each in the group of its key; one that is empty is not there."""

    def note(self, key: K, uid: str, value: V | None) -> None:
        """None: it is in this group no more."""
        if value is not None:
            self.setdefault(key, {})[uid] = value
        elif (group := self.get(key)) is not None:
            group.pop(uid, None)
            if not group:
                del self[key]


class Claims:
    """The claims, by name, by task and by pod; what a list says of a moment that is over changes nothing.

    A claim without a resourceVersion is one whose Lease somebody deleted: it is held here until its run
    has ended, unless the workspace has been claimed anew meanwhile. One of another shard is found by its name alone: it
    holds its state, and is no task's and no agent's here.
    """

    def __init__(self, watched: Collection[str] = ()) -> None:
        """Empty: all namespaces."""
        self._watched = frozenset(watched)
        self.by_name: dict[str, Claim] = {}
        self.by_task: dict[str, Claim] = {}
        self.by_pod: dict[str, Claim] = {}
        self._released: dict[str, int] = {}
        self._released_runs: dict[str, None] = {}

    def is_anothers(self, claim: Claim) -> bool:
        return is_of_another_shard(claim, self._watched)

    def put(self, claim: Claim) -> None:
        known = self.by_name.get(claim.name)
        if claim.resource_version:
            version = int(claim.resource_version)
            if version <= self._released.get(claim.name, 0):
                return
            if known is not None and known.resource_version and int(known.resource_version) > version:
                return
        if claim.resource_version or known is None:
            self.remove(claim.name)
            self.by_name[claim.name] = claim
        if not self.is_anothers(claim):
            self.by_task[claim.task_uid] = claim
            self.by_pod[claim.pod_uid] = claim

    def release(self, claim: Claim) -> None:
        """Its Lease was deleted by us: an older list does not bring it back."""
        if claim.resource_version:
            self._released[claim.name] = int(claim.resource_version)
            _remember(self._released_runs, claim.run_id, None)
        held = self.by_name.get(claim.name)
        if held is not None and held.run_id == claim.run_id:  # a list may have found meanwhile that its Lease is gone
            del self.by_name[claim.name]
        self._forget(claim)

    def is_released(self, run_id: str) -> bool:
        """Its Lease is gone for good, and no other one names this run; False: as far as is known here."""
        return run_id in self._released_runs

    def remove(self, name: str) -> Claim | None:
        claim = self.by_name.pop(name, None)
        if claim is not None:
            self._forget(claim)
        return claim

    def missing(self, present: Iterable[str], list_version: int) -> list[Claim]:
        """Claims here whose Lease a list taken at this version did not have, and that are no newer than it; those too
        that had none before."""
        known = set(present)
        return [
            claim
            for claim in self.by_name.values()
            if claim.name not in known and int(claim.resource_version or 0) <= list_version
        ]

    def _forget(self, claim: Claim) -> None:
        # A late answer may have brought back a claim that is gone: the one that took its place stays.
        for index, key in ((self.by_task, claim.task_uid), (self.by_pod, claim.pod_uid)):
            if (held := index.get(key)) is not None and (held.name, held.run_id) == (claim.name, claim.run_id):
                del index[key]
        # Who led before may have given the same agent to another task: the claim that was first is still there.
        if claim.pod_uid not in self.by_pod:
            others = (other for other in self.by_name.values() if other.pod_uid == claim.pod_uid)
            self.by_pod.update({other.pod_uid: other for other in others if not self.is_anothers(other)})


class Templates:
    """What follows from a pool's podTemplate: a pool is looked at far more often than it changes."""

    def __init__(self, operator_ca: str) -> None:
        self._operator_ca = operator_ca
        self._known: dict[str, tuple[tuple[int, str], str, str]] = {}
        """Pool UID -> its generation and image, and the answer."""

    def of(self, pool: Pool, image: str) -> tuple[str, str]:
        """Its hash, and what is refused of it."""
        version = pool.generation, image
        if (known := self._known.get(pool.uid)) is None or known[0] != version:
            template = pod.template_hash(pool, image=image, operator_ca=self._operator_ca)
            known = version, template, "; ".join(pod_template.refusals(pool.pod_template))
            self._known[pool.uid] = known
        return known[1:]
