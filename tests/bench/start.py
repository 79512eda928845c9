"""The start part: create a task -> `terraform init` exec'd by a warm agent, beside a bare Job that runs the same.

In turn, one task and one Job at a time, on one node. Both have their source from one ConfigMap, the agent's image
and its resources. Both times begin when the API server has answered the create, and end when the node watcher first
sees the command line `terraform init` in the pod. Called by `__main__`.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict

from tests.bench import bare
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.kubernetes_api import Json
from tests.bench.rounds import moment, take
from tests.bench.system import NAMESPACE, POOL, TASKS, System
from tests.bench.watched import a_watched_cluster, first_init
from tests.e2e.timeline import Timeline

AT_LEAST = 10.0
"""So many times sooner, at the median, has an agent to be; a warm one that is not is worth nothing."""
AGENT, JOB = "create answered -> init exec'd, warm agent", "create answered -> init exec'd, bare Job"
RATIO = "bare Job : warm agent"
_SOURCE = "start-source"
_TEXT = 'output "greeting" {\n  value = "hello"\n}\n'
_ENDS_S = 60.0


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part("start", f"create -> terraform init exec'd (warm agent), against a bare Job's, {rounds} rounds")
    ms: dict[str, list[float]] = defaultdict(list)
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _SOURCE, "namespace": NAMESPACE}}
    await system.run(system.run.kubectl, "apply", "-f", "-", text=json.dumps({**made, "data": {"main.tf": _TEXT}}))

    async with a_watched_cluster(system) as timeline:

        async def one(number: int) -> str:
            name = f"start-{time.time_ns() // 1_000_000 % 10**9}-{number}"
            task = await _start_a_task(system, timeline, name)
            agent = await system.await_idle_agent()
            (resources,) = (c["resources"] for c in agent["spec"]["containers"] if c["name"] == "agent")
            job = await bare.create_to_init_ms(system, timeline, f"bare-{name}", _SOURCE, resources)
            await floor.sample()
            for what, value in task.items():
                ms[what].append(value)
            ms["job"].append(job)
            return f"create -> init {task['init']:.1f} ms, bare Job {job:.0f} ms"

        await take(part, system, rounds, one)
    init = part.add(AGENT, "ms", ms["init"])
    job = part.add(JOB, "ms", ms["job"])
    part.add("create sent -> answered, task", "ms", ms["answered"])
    part.add("create answered -> status.startedAt (run begins on the agent)", "ms", ms["started"])
    part.add("create answered -> status.finishedAt of a plan of nothing", "ms", ms["finished"])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare(RATIO, job, init)
    part.compare("warm agent : floor", init, least)
    if not system.facts["one_clock"]:
        part.notes.append("this machine and the node may have different clocks: all times are wrong by the difference")
    judge(part, rounds)
    return part


def judge(part: Part, rounds: int) -> None:
    """Notes what is missed: a ratio that is too low, or of fewer rounds than were asked for."""
    ratio = next((ratio.value for ratio in part.ratios if ratio.what == RATIO), None)
    if ratio is None or ratio < AT_LEAST:
        found = "nothing was measured" if ratio is None else f"it was {ratio:.3g}"
        part.missed.append(f"{RATIO} has to be at least {AT_LEAST:g} x, {found}")
    if short := [row.what for row in part.rows if row.what in (AGENT, JOB) and len(row.samples) < rounds]:
        part.missed.append(f"fewer than {rounds} samples: {', '.join(short)}")


async def _start_a_task(system: System, timeline: Timeline, name: str) -> dict[str, float]:
    """Milliseconds after the create was answered, and for `answered` after it was sent."""
    agent = await system.await_idle_agent()
    asked = time.time()
    await system.api.create(TASKS, _task(name))
    answered = time.time()
    init = await first_init(timeline, agent["metadata"]["uid"], _ENDS_S)
    ended = await system.api.until(
        f"{TASKS}/{name}", lambda task: "finishedAt" in task.get("status", {}), _ENDS_S, f"task {name} should end"
    )
    status = ended["status"]
    if status["phase"] != "Succeeded":
        raise TimeoutError(f"task {name} ended as {status['phase']}: {status['message']}")
    moments = {"started": moment(status["startedAt"]), "init": init, "finished": moment(status["finishedAt"])}
    since = {what: (at - answered) * 1000 for what, at in moments.items()}
    return since | {"answered": (answered - asked) * 1000}


def _task(name: str) -> Json:
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": name},
        "spec": {
            "action": "Plan",
            "workspace": name,
            "poolRef": {"name": POOL},
            "source": {"configMapRef": {"name": _SOURCE}},
        },
    }
