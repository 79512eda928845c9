"""The namespaces, pools and tasks of the bench, and what a watch of our own sees of the tasks.

A task's phase is told with the moment at which that watch told it. Tasks that have ended are deleted and others made in
their place, so that there are as many as were asked for whenever something is measured. Called by `stage`, `measure`
and `plain`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from terrahalt_operator.core import names
from terrahalt_operator.core.model import APPLYING, TERMINAL
from tests.bench.kubernetes_api import Api, ApiError, Json
from tests.bench.scale import node
from tests.bench.scale.following import follow

API = "/apis/terrahalt.dev/v1alpha1"
MARK = "terrahalt.dev/bench-mark"
LONG_S = 100_000.0
AT_ONCE = 25
"""Requests of the driver under way. With 100 of them an API server with two cores answers nobody within two seconds,
nor does it the leader of the operators."""
_PER_NAMESPACE = 2
ACCOUNT = "terrahalt-agent"
SOURCE = 'output "greeting" {\n  value = "hello"\n}\n'
_QUIET_S = 2.0
_LOOKS_EVERY_S = 0.01
"""Looking at thousands of tasks after each change would cost what is measured; each change has its time."""

Key = tuple[str, str]


@dataclass(slots=True)
class Sight:
    """What the watch has told of one task, and when it told each phase first."""

    pool: str = ""
    phase: str = ""
    is_deleting: bool = False
    stamped_at: float = 0.0
    at: dict[str, float] = field(default_factory=dict)
    mark: str = ""
    marked_at: float = 0.0

    @property
    def is_waiting_or_running(self) -> bool:
        return self.phase not in TERMINAL and not self.is_deleting


class Tasks:
    def __init__(self, api: Api, pools: int) -> None:
        self._api = self._watching = api
        self.namespaces = [f"terrahalt-scale-{n}" for n in range((pools + _PER_NAMESPACE - 1) // _PER_NAMESPACE)]
        self.pools = [(self.namespaces[n // _PER_NAMESPACE], f"pool-{n % _PER_NAMESPACE}") for n in range(pools)]
        self.seen: dict[Key, Sight] = {}
        self.phases: Counter[str] = Counter()
        self.changes = 0
        self._changed_at = time.monotonic()
        self._changed = asyncio.Event()
        self._made = 0
        self._broken: BaseException | None = None

    # ---- what is seen

    def watches_by(self, api: Api) -> None:
        """A client of its own: all connections of the other are for requests."""
        self._watching = api

    async def watch(self) -> None:
        async for is_gone, task in follow(self._watching, f"{API}/terraformtasks"):
            now = time.monotonic()
            meta = task["metadata"]
            key = meta["namespace"], meta["name"]
            old = self.seen.get(key)
            if old is not None:
                self.phases[old.phase] -= 1
            if is_gone:
                self.seen.pop(key, None)
            else:
                sight = old or self.seen.setdefault(key, Sight())
                sight.phase = (task.get("status") or {}).get("phase", "")
                sight.at.setdefault(sight.phase, now)
                sight.pool = task["spec"]["poolRef"]["name"]
                sight.is_deleting = "deletionTimestamp" in meta
                annotations = meta.get("annotations") or {}
                if not sight.stamped_at and names.UID_ANNOTATION in annotations:
                    sight.stamped_at = now
                if (mark := annotations.get(MARK, "")) != sight.mark:
                    sight.mark, sight.marked_at = mark, now
                self.phases[sight.phase] += 1
            self.changes += 1
            self._changed_at = now
            self._changed.set()

    def broke(self, why: BaseException) -> None:
        """The watch: whoever waits for what it would tell gets this instead."""
        self._broken = why
        self._changed.set()

    async def until(self, condition: Callable[[], Any], within_s: float, what: str) -> None:
        """Raises TimeoutError that says what there was instead."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    if self._broken is not None:
                        raise self._broken
                    self._changed.clear()
                    await self._changed.wait()
                    await asyncio.sleep(_LOOKS_EVERY_S)
        except TimeoutError:
            phases = {phase or "new": count for phase, count in self.phases.items() if count}
            raise TimeoutError(f"not within {within_s:.0f} s: {what}; tasks by phase: {phases}") from None

    async def until_phase(self, key: Key, phase: str, within_s: float) -> float:
        """When it was seen."""
        await self.until(
            lambda: key in self.seen and phase in self.seen[key].at, within_s, f"{'/'.join(key)} should be {phase}"
        )
        return self.seen[key].at[phase]

    async def until_stamped(self, key: Key, within_s: float) -> float:
        await self.until(
            lambda: key in self.seen and self.seen[key].stamped_at, within_s, f"{'/'.join(key)} should be stamped"
        )
        return self.seen[key].stamped_at

    async def until_quiet(self, within_s: float) -> bool:
        """Whether nothing has been written to any task for a while."""
        ends = time.monotonic() + within_s
        while (left := self._changed_at + _QUIET_S - time.monotonic()) > 0:
            if time.monotonic() > ends:
                return False
            await asyncio.sleep(left)
        return True

    def applying(self) -> list[Key]:
        return [key for key, sight in self.seen.items() if sight.phase == APPLYING and not sight.is_deleting]

    # ---- what is made

    async def make_pools(self) -> None:
        for namespace in self.namespaces:
            await make_namespace(self._api, namespace)
        for namespace, name in self.pools:
            await make_pool(self._api, namespace, name, min_idle=0, max_agents=1)

    async def resize(self, agents: int) -> None:
        """As evenly as it goes."""
        for number, (namespace, name) in enumerate(self.pools):
            size = agents // len(self.pools) + (number < agents % len(self.pools))
            await self._api.patch(f"{API}/namespaces/{namespace}/agentpools/{name}", {"spec": {"maxAgents": size}})

    async def fill(self, count: int) -> None:
        """Without those that have ended, which are deleted; each pool has as many."""
        over = [k for k, sight in self.seen.items() if sight.phase in TERMINAL and not sight.is_deleting]
        await at_once(self._delete(key) for key in over)
        left = Counter((ns, sight.pool) for (ns, _), sight in self.seen.items() if sight.is_waiting_or_running)
        made = []
        for _ in range(count - left.total()):
            namespace, pool = min(self.pools, key=left.__getitem__)
            left[namespace, pool] += 1
            made.append((namespace, f"task-{self._made:06}", pool))
            self._made += 1
        await at_once(self.create(*each) for each in made)
        await self.until(lambda: not any((ns, n) not in self.seen for ns, n, _ in made), 60, "tasks should be seen")
        await self.until(lambda: not any(key in self.seen for key in over), 600, "ended tasks should be gone")

    async def create(self, namespace: str, name: str, pool: str, seconds: float = LONG_S) -> None:
        await self._api.create(
            f"{API}/namespaces/{namespace}/terraformtasks",
            {
                "apiVersion": "terrahalt.dev/v1alpha1",
                "kind": "TerraformTask",
                "metadata": {"name": name},
                "spec": {
                    "action": "Apply",
                    "workspace": name,
                    "poolRef": {"name": pool},
                    "source": {"inline": {"main.tf": SOURCE}},
                    "variables": {"seconds": seconds},
                    "timeoutSeconds": 86_400,
                },
            },
        )

    async def patch(self, key: Key, body: Json) -> tuple[float, float]:
        """When it was sent and when it was answered."""
        sent = time.monotonic()
        await self._api.patch(f"{API}/namespaces/{key[0]}/terraformtasks/{key[1]}", body)
        return sent, time.monotonic()

    async def cancel(self, key: Key) -> tuple[float, float]:
        return await self.patch(key, {"spec": {"cancel": True}})

    async def connect(self) -> None:
        """All connections: those that were idle for long are closed, and a handshake is no part of a PATCH."""
        await at_once(self._api.get("/version") for _ in range(AT_ONCE))

    async def _delete(self, key: Key) -> None:
        await self._api.delete(f"{API}/namespaces/{key[0]}/terraformtasks/{key[1]}")


async def make_namespace(api: Api, name: str) -> None:
    await api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    await api.create(f"/api/v1/namespaces/{name}/serviceaccounts", account)


async def make_pool(api: Api, namespace: str, name: str, *, min_idle: int, max_agents: int) -> None:
    await api.create(
        f"{API}/namespaces/{namespace}/agentpools",
        {
            "apiVersion": "terrahalt.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": name},
            "spec": {
                "minIdle": min_idle,
                "maxAgents": max_agents,
                "serviceAccountName": ACCOUNT,
                "podTemplate": {"spec": node.where()},
            },
        },
    )


async def at_once(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Their answers, in order; as many at once as there are connections, so that none waits for one."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(work: Awaitable[Any]) -> Any:
        async with gate:
            return await work

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(work)) for work in works]
    return [task.result() for task in tasks]


async def never_mind(work: Awaitable[Any]) -> None:
    """What is to be removed may be gone."""
    try:
        await work
    except ApiError as error:
        if error.status not in (404, 409):
            raise
