"""The node watcher of the cluster suite, for the bench: the same eyes for an agent and for what it is compared with.

It looks at all processes every 5 ms, so it is there only while a part needs it. What it had to put on the cluster it
takes away again. Called by `start`, `hand_over` and `throughput`; `bare` asks it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.bench.system import System, until_gone
from tests.cluster import ClusterError
from tests.e2e import node_watcher
from tests.e2e.kubectl import Kubectl
from tests.e2e.node_watcher import NodeWatcher
from tests.e2e.timeline import Timeline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watched:
    timeline: Timeline
    nodes: NodeWatcher


@asynccontextmanager
async def a_watched_cluster(system: System) -> AsyncIterator[Watched]:
    """Raises ClusterError where nobody can look."""
    await until_gone(system.api, node_watcher.NAMESPACE)
    kubectl = Kubectl(Path(system.run.kubectl), system.run.environment)
    timeline = Timeline()
    nodes = NodeWatcher(system.cluster, kubectl, timeline)
    was_there = await system.api.find(f"/api/v1/namespaces/{node_watcher.NAMESPACE}") is not None
    try:
        try:
            await asyncio.to_thread(nodes.put, system.image)
            await asyncio.to_thread(nodes.open)
        except AssertionError as error:
            raise ClusterError(f"the nodes can't be looked at: {error}") from error
        yield Watched(timeline, nodes)
    finally:
        await asyncio.to_thread(nodes.close)
        if not was_there:
            await asyncio.to_thread(nodes.remove)


async def first_init(timeline: Timeline, pod_uid: str, within_s: float) -> float:
    """When `terraform init` was seen in that pod, past or to come. Raises TimeoutError."""
    return await seen(timeline, lambda: init_seen(timeline, pod_uid), within_s, f"terraform init in pod {pod_uid}")


async def seen(timeline: Timeline, look: Callable[[], T | None], within_s: float, what: str) -> T:
    """`Timeline.until`, for the bench: raises TimeoutError."""
    try:
        return await asyncio.to_thread(timeline.until, look, within_s, what)
    except AssertionError as error:
        raise TimeoutError(str(error)) from error


def init_seen(timeline: Timeline, pod_uid: str) -> float | None:
    """By its command line, so after its exec: the process may be older, as a copy of what has started it."""
    inits = (p.exec_seen for p in timeline.processes if p.pod_uid == pod_uid and p.is_terraform("init"))
    return min(inits, default=None)
