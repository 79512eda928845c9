"""The start part: create a task -> `terraform init` exec'd by a warm agent, beside a bare Job that runs the same.

In turn, one task and one Job at a time, on one node. Both have their source from one ConfigMap, the agent's image
and its resources. Both times end when the node watcher first sees the command line `terraform init` in the pod. Then
a few tasks of a pool without a warm agent, whose pod is made for them. Called by `__main__`.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict

from tests.bench import bare
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.limits import LeastRatio, Limit, judge
from tests.bench.rounds import moment, take
from tests.bench.system import NAMESPACE, POOL, TASKS, System
from tests.bench.tasks import ENDS_S, GREETING, Tasks, a_name, a_task, watched_tasks
from tests.bench.watched import a_watched_cluster, first_init
from tests.e2e.timeline import Timeline

SENT = "create sent -> init exec'd, warm agent"
AGENT, JOB = "create answered -> init exec'd, warm agent", "create answered -> init exec'd, bare Job"
COLD = "create sent -> init exec'd, no agent there (minIdle 0)"
RATIO = "bare Job : warm agent"
LIMITS = (Limit(SENT, 50, 30),)
LEAST = (LeastRatio(RATIO, 10),)
"""A warm agent that is not so many times sooner, at the median, is worth nothing."""
DRAWN = (SENT, COLD, JOB)
_COLD_ONES = 6
"""Of so many warm starts there is one cold one: it takes seconds, and nothing is judged by it."""
_SOURCE = "start-source"


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part("start", f"create -> terraform init exec'd (warm agent), against a bare Job's, {rounds} rounds")
    ms: dict[str, list[float]] = defaultdict(list)
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _SOURCE, "namespace": NAMESPACE}}
    await system.run(system.run.kubectl, "apply", "-f", "-", text=json.dumps({**made, "data": {"main.tf": GREETING}}))

    async with a_watched_cluster(system) as watched, watched_tasks(system.api) as tasks:
        timeline = watched.timeline

        async def one(number: int) -> str:
            name = a_name("start", number)
            agent = await system.await_idle_agent()
            (resources,) = (c["resources"] for c in agent["spec"]["containers"] if c["name"] == "agent")
            task = await _start_a_task(system, timeline, tasks, name, POOL)
            await system.await_idle_agent()
            job = await bare.create_to_init_ms(system, timeline, f"bare-{name}", _SOURCE, resources)
            await floor.sample()
            for what, value in task.items():
                ms[what].append(value)
            ms["job"].append(job)
            return f"create -> init {task['init']:.1f} ms, bare Job {job:.0f} ms"

        await take(part, system, rounds, one)
        async with system.a_pool("bench-cold", minIdle=0, maxAgents=1) as pool:

            async def a_cold_one(number: int) -> str:
                await system.await_no_agent(pool)
                task = await _start_a_task(system, timeline, tasks, a_name("cold", number), pool)
                ms["cold"].append(task["init since sent"])
                return f"cold: create -> init {task['init']:.0f} ms"

            await take(part, system, -(-rounds // _COLD_ONES), a_cold_one)
    part.add(SENT, "ms", ms["init since sent"])
    init = part.add(AGENT, "ms", ms["init"])
    job = part.add(JOB, "ms", ms["job"])
    part.add(COLD, "ms", ms["cold"])
    part.add("create sent -> answered, task", "ms", ms["answered"])
    part.add("create answered -> status.startedAt (run begins on the agent)", "ms", ms["started"])
    part.add("create answered -> status.finishedAt of a plan of nothing", "ms", ms["finished"])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare(RATIO, job, init)
    part.compare("warm agent : floor", init, least)
    judge(part, rounds, LIMITS, LEAST, also_counted=[JOB, AGENT])
    return part


async def _start_a_task(system: System, timeline: Timeline, tasks: Tasks, name: str, pool: str) -> dict[str, float]:
    """Milliseconds after the create was answered, but `answered` and `init since sent` after it was sent."""
    asked = time.time()
    await system.api.create(TASKS, a_task(name, "Plan", {"configMapRef": {"name": _SOURCE}}, pool=pool))
    answered = time.time()
    _, status = await tasks.until_ended(name, "Succeeded")
    init = await first_init(timeline, status["agent"]["podUID"], ENDS_S)
    moments = {"started": moment(status["startedAt"]), "init": init, "finished": moment(status["finishedAt"])}
    since = {what: (at - answered) * 1000 for what, at in moments.items()}
    return since | {"answered": (answered - asked) * 1000, "init since sent": (init - asked) * 1000}
