"""An API server as small as the product needs: versions, conflicts, finalizers, graces, and what a watch tells.

Objects are never changed in place: a new version is a new dict that shares the rest, so nothing is copied.
Every call of an operator stops twice, before the server acts and before the answer arrives: who drives the
coroutine may let others act meanwhile, raise an error there, or never go on (a crash). Knows no rule of
the product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

from terrahalt_operator.adapters.cluster import Resource
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.errors import AlreadyExists, Conflict, NotFound, Refused
from tests.operator_core.merge import apply_merge_patch

Json = dict[str, Any]
Event = tuple[str, bool, Json]
"""(plural, whether it is gone, the object), as `World.see` takes it."""
Written = Callable[[str, str, Json | None, Json | None], None]
"""(who, plural, the object before, and after); None: it was not there, or is gone."""

WATCHED = ("terraformtasks", "agentpools", "pods")
ENDED_PHASES = ("Failed", "Succeeded")


@dataclass(frozen=True, slots=True)
class Pause:
    """Where a coroutine stops until it is driven on: before the server acts, or, then without words, before the answer
    arrives."""

    verb: str = ""
    of: str = ""
    """What kind, and which object."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


ANSWER = Pause()


class ApiServer:
    def __init__(
        self, now: Callable[[], float], written: Written, answered: Callable[[str, Json], None] = lambda by, pod: None
    ) -> None:
        """`answered`: told of each write to a pod whose answer has arrived: by whom, and the pod."""
        self.kinds: dict[str, dict[tuple[str, str], Json]] = {}
        self.log: dict[str, list[Event]] = {plural: [] for plural in WATCHED}
        """What a watch of each kind would tell, since the beginning."""
        self.refused: set[str] = set()
        """Pods that no operator may write to, by name: somebody's webhook or role is in the way."""
        self.version = 0
        self.owner: dict[str, str] = {}
        """resourceVersion -> UID of the object that has it."""
        self._made: dict[str, int] = {}
        self.now, self._written, self.answered = now, written, answered

    def all(self, plural: str, namespace: str | None = None, labels: str = "") -> list[Json]:
        of_kind = self.kinds.get(plural, {})
        found = [obj for (at, _), obj in of_kind.items() if at == namespace] if namespace else list(of_kind.values())
        key, _, value = labels.partition("=")
        return [obj for obj in found if (obj["metadata"].get("labels") or {}).get(key) == value] if labels else found

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        return self.kinds.get(plural, {}).get((namespace, name))

    def of(self, plural: str, namespace: str, name: str) -> Json:
        if (obj := self.find(plural, namespace, name)) is None:
            raise NotFound(f"{plural} {namespace}/{name}")
        return obj

    def make(self, plural: str, namespace: str, body: Json, by: str = "somebody") -> Json:
        meta, number = dict(body["metadata"]), self._made.get(plural, 0) + 1
        meta.setdefault("name", f"{meta.get('generateName', '')}{number}")
        if self.find(plural, namespace, meta["name"]) is not None:
            raise AlreadyExists(f"{plural} {namespace}/{meta['name']}")
        self._made[plural] = number
        uid = f"{plural}-{number}"
        since = timestamp(float(int(self.now())))  # in whole seconds
        meta |= {"namespace": namespace, "uid": uid, "generation": 1, "creationTimestamp": since}
        return self._store(by, plural, None, body | {"metadata": meta})

    def change(
        self, plural: str, namespace: str, name: str, patch: Json, *, subresource: str = "", by: str = "somebody"
    ) -> Json:
        old = self.of(plural, namespace, name)
        asked = patch.get("metadata") or {}
        if any(old["metadata"][k] != asked[k] for k in ("resourceVersion", "uid") if k in asked):
            raise Conflict(f"{plural} {namespace}/{name}")
        new: Json = apply_merge_patch(
            old, {"status": patch["status"]} if subresource else {k: v for k, v in patch.items() if k != "status"}
        )
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"] = new["metadata"] | {"generation": new["metadata"]["generation"] + 1}
        return self._store(by, plural, old, new)

    def take_away(
        self,
        plural: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        version: str = "",
        grace_s: int | None = None,
        by: str = "somebody",
    ) -> Json:
        """The object as it is now; of a Pod the API server says the kind too. `grace_s`: in place of its own."""
        old = self.of(plural, namespace, name)
        meta = old["metadata"]
        if (uid and meta["uid"] != uid) or (version and meta["resourceVersion"] != version):
            raise Conflict(f"{plural} {namespace}/{name}")
        going: Json = {}
        if plural == "pods":
            status, spec = old.get("status") or {}, old["spec"]
            asked_s = spec.get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
            if status.get("phase") in ENDED_PHASES or not spec.get("nodeName"):
                asked_s = 0
            if asked_s < meta.get("deletionGracePeriodSeconds", asked_s + 1):
                going = {"deletionTimestamp": timestamp(self.now() + asked_s), "deletionGracePeriodSeconds": asked_s}
        elif "deletionTimestamp" not in meta:
            going = {"deletionTimestamp": timestamp(self.now())}
        new = self._store(by, plural, old, old | {"metadata": meta | going}) if going else old
        return new | {"kind": "Pod" if plural == "pods" else "Status"}

    def _store(self, by: str, plural: str, old: Json | None, new: Json) -> Json:
        self.version += 1
        meta = new["metadata"] = new["metadata"] | {"resourceVersion": str(self.version)}
        self.owner[meta["resourceVersion"]] = meta["uid"]
        is_kept = bool(meta.get("finalizers") or meta.get("deletionGracePeriodSeconds"))
        is_gone = "deletionTimestamp" in meta and not is_kept
        of_kind = self.kinds.setdefault(plural, {})
        if is_gone:
            of_kind.pop((meta["namespace"], meta["name"]), None)
        else:
            of_kind[meta["namespace"], meta["name"]] = new
        if plural in self.log:
            self.log[plural].append((plural, is_gone, new))
        self._written(by, plural, old, None if is_gone else new)
        return new


class Door:
    """In the place of `adapters.cluster.Cluster`: one operator's way to the API server."""

    def __init__(self, server: ApiServer, by: str, namespaces: Collection[str] = ()) -> None:
        """`namespaces`: where it has a Role; empty: it has a ClusterRole."""
        self._server, self._by, self._namespaces = server, by, namespaces

    def _authorize(self, resource: Resource, namespace: str | None) -> None:
        if self._namespaces and namespace not in self._namespaces:
            raise Refused(f"{self._by} may do nothing with {resource[1]} in {namespace or 'all namespaces'}")

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        await Pause("get", f"{resource[1]} {name}")
        self._authorize(resource, namespace)
        obj = self._server.of(resource[1], namespace, name)
        await ANSWER
        return obj

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> tuple[list[Json], str]:
        if resource[1] == "networkpolicies":  # each anchor owns one
            return self._server.all("configmaps", namespace), str(self._server.version)
        await Pause("list", resource[1])
        self._authorize(resource, namespace)
        items, version = self._server.all(resource[1], namespace, labels), str(self._server.version)
        await ANSWER
        return items, version

    async def each(
        self,
        resource: Resource,
        namespace: str | None,
        take: Callable[[Json], None],
        labels: str = "",
        *,
        is_known: Callable[[str, str], bool],
    ) -> str:
        items, version = await self.list(resource, namespace, labels)
        for item in items:
            if not is_known(item["metadata"]["uid"], item["metadata"]["resourceVersion"]):
                take(item)
        return version

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        await Pause("create", resource[1])
        self._authorize(resource, namespace)
        obj = self._server.make(resource[1], namespace, body, by=self._by)
        await ANSWER
        return obj

    async def patch(self, resource: Resource, namespace: str, name: str, body: Json, *, subresource: str = "") -> Json:
        await Pause("patch", f"{resource[1]} {name}")
        self._authorize(resource, namespace)
        self._ask_leave(resource, name)
        obj = self._server.change(resource[1], namespace, name, body, subresource=subresource, by=self._by)
        await ANSWER
        if resource[1] == "pods":
            self._server.answered(self._by, obj)
        return obj

    async def apply(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Network policies alone, which are no part of a history: nothing stops for them."""
        return body

    def within(self, deadline_s: float) -> Door:
        return self

    async def log_tail(self, namespace: str, pod: str, container: str, max_bytes: int) -> tuple[bytes, int]:
        """No part of a history, either."""
        return b"", 0

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str = "", version: str = "") -> Json:
        await Pause("delete", f"{resource[1]} {name}")
        self._authorize(resource, namespace)
        self._ask_leave(resource, name)
        answer = self._server.take_away(resource[1], namespace, name, uid=uid, version=version, by=self._by)
        await ANSWER
        return answer

    def _ask_leave(self, resource: Resource, name: str) -> None:
        if resource[1] == "pods" and name in self._server.refused:
            raise Refused(f"403 pods {name} is forbidden")
