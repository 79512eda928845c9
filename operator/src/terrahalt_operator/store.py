"""What the operator has last seen of the cluster: objects by their keys, never older than seen before.

Filled by lists at the start and now and then, by the watch, and by the answers to our own writes, in
any order: the highest resourceVersion stays. Holds no rule of the product. Called by `reconciler`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from terrahalt_operator.adapters import objects
from terrahalt_operator.core.model import Claim

V = TypeVar("V")
Json = dict[str, Any]


class Shelf(Generic[V]):
    """Objects of one kind, by UID: as JSON and as the core's value."""

    def __init__(self) -> None:
        self.raw: dict[str, Json] = {}
        self.values: dict[str, V] = {}

    def put(self, obj: Json, value: V) -> bool:
        """Whether it was news; an object older than the one here is not."""
        uid = obj["metadata"]["uid"]
        old = self.raw.get(uid)
        if old is not None and objects.version(old) >= objects.version(obj):
            return False
        # managedFields is most of a small object, and nobody here reads it.
        meta = {key: part for key, part in obj["metadata"].items() if key != "managedFields"}
        self.raw[uid], self.values[uid] = obj | {"metadata": meta}, value
        return True

    def remove(self, uid: str) -> V | None:
        self.raw.pop(uid, None)
        return self.values.pop(uid, None)

    def gone(self, present: Iterable[str], list_version: int) -> list[str]:
        """UIDs here that a list taken at this version did not have, and that are no newer than it."""
        known = set(present)
        return [uid for uid, obj in self.raw.items() if uid not in known and objects.version(obj) <= list_version]


class Claims:
    """The claims, by name, by task and by pod."""

    def __init__(self) -> None:
        self.by_name: dict[str, Claim] = {}
        self.by_task: dict[str, Claim] = {}
        self.by_pod: dict[str, Claim] = {}

    def put(self, claim: Claim) -> None:
        self.remove(claim.name)
        self.by_name[claim.name] = claim
        self.by_task[claim.task_uid] = claim
        self.by_pod[claim.pod_uid] = claim

    def remove(self, name: str) -> Claim | None:
        claim = self.by_name.pop(name, None)
        if claim is not None:
            # A late answer may have brought back a claim that is gone: the one that took its place stays.
            if self.by_task.get(claim.task_uid) is claim:
                del self.by_task[claim.task_uid]
            if self.by_pod.get(claim.pod_uid) is claim:
                del self.by_pod[claim.pod_uid]
        return claim
