"""The throughput part: a queue of short plans on two agents, and what it costs that each gets a fresh one.

All tasks are created at once, each of a workspace of its own. First every agent is replaced after its task, then two
agents take all of them (`maxTasksPerAgent`). What a replacement takes is told by the versions of the pods that a watch
got: the i-th end makes room for the i-th agent that follows. Called by `__main__`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.system import NAMESPACE, TASKS, System
from tests.bench.tasks import QUICK, Tasks, a_name, a_task, watched_tasks
from tests.bench.watched import a_watched_cluster
from tests.e2e.timeline import Timeline
from tests.soak.pool_story import BUSY, GONE, IDLE, History, state_of

AGENTS = 2
FRESH, REUSED = "plans a minute, each in a fresh agent", "plans a minute, in agents that are used again"
THERE, READY, GIVEN = (
    f"agent ended -> {what}" for what in ("the next one's pod is there", "it is ready", "it has a run")
)


async def measure(system: System, floor: Floor, plans: int) -> Part:
    part = Part("throughput", f"a queue of {plans} short plans on {AGENTS} agents")
    async with a_watched_cluster(system) as watched, watched_tasks(system.api) as tasks:
        async with system.a_pool("bench-fresh", minIdle=AGENTS, maxAgents=AGENTS) as pool:
            fresh = part.add(FRESH, "", [await _a_minute(system, tasks, pool, plans)])
            pods = _histories(watched.timeline, pool)
        more = {"minIdle": AGENTS, "maxAgents": AGENTS, "maxTasksPerAgent": 1000}
        async with system.a_pool("bench-again", **more) as pool:
            again = part.add(REUSED, "", [await _a_minute(system, tasks, pool, plans)])
    replaced = replacements(pods)
    for what, seconds in zip((THERE, READY, GIVEN), zip(*replaced, strict=True), strict=False):
        part.add(what, "s", seconds)
    for _ in replaced:
        await floor.sample()
    part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-len(replaced) :] if replaced else [])
    part.compare("used again : fresh", again, fresh)
    return part


async def _a_minute(system: System, tasks: Tasks, pool: str, plans: int) -> float:
    await system.await_idle_agents(pool, AGENTS)
    names = [a_name(pool, number) for number in range(plans)]
    began = time.time()
    for name in names:
        await system.api.create(TASKS, a_task(name, "Plan", QUICK, pool=pool))
    ends = [(await tasks.until_ended(name, "Succeeded"))[0] for name in names]
    return plans / (max(ends) - began) * 60


def _histories(timeline: Timeline, pool: str) -> list[History]:
    label = "terrahalt.dev/pool"
    names = timeline.names("pods", NAMESPACE, lambda pod: pod.object["metadata"]["labels"].get(label) == pool)
    return [timeline.history("pods", NAMESPACE, name) for name in names]


def replacements(pods: Iterable[History]) -> list[tuple[float, float, float]]:
    """Seconds from an agent's end until the next one's pod was there, was ready, and had a run, where it had one."""
    lives = sorted(pods, key=lambda seen: seen[0].at)
    ends = sorted(at for seen in lives if (at := _first(seen, GONE)) is not None)
    following = [seen for seen in lives if ends and seen[0].at > ends[0]]
    found = []
    for end, seen in zip(ends, following, strict=False):
        given = _first(seen, BUSY)
        ready = _first(seen, IDLE, BUSY)
        if given is not None and ready is not None:
            found.append((seen[0].at - end, ready - end, given - end))
    return found


def _first(seen: History, *states: str) -> float | None:
    return next((sighting.at for sighting in seen if state_of(sighting) in states), None)
