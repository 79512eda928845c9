"""The start part: create a task -> `terraform init` exec'd by a warm agent, beside a bare Job of the same image.

In turn. The moment of init is the one at which the node's kernel opened the terraform binary to exec it; the
Job's is that of its own first command. Called by `__main__`.
"""

from __future__ import annotations

import time
from collections import defaultdict

from tests.bench import bare
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.rounds import moment, take
from tests.bench.system import POOL, TASKS, System

_ENDS_S = 60.0


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part("start", f"create -> terraform init exec'd (warm agent), against a bare Job's process, {rounds} rounds")
    ms: dict[str, list[float]] = defaultdict(list)

    async def one(number: int) -> str:
        name = f"start-{time.time_ns() // 1_000_000 % 10**9}-{number}"
        task = await _start_a_task(system, name)
        await system.await_idle_agent()
        job = await bare.create_to_run_ms(system.api, f"bare-{name}", system.image)
        await floor.sample()
        for what, value in task.items():
            ms[what].append(value)
        ms["job"].append(job)
        return f"create -> init {task['init']:.1f} ms, bare Job {job:.0f} ms"

    await take(part, system, rounds, one)
    init = part.add("create sent -> init exec'd (node's kernel)", "ms", ms["init"])
    part.add("create sent -> answered", "ms", ms["answered"])
    part.add("create sent -> status.startedAt (run begins on the agent)", "ms", ms["started"])
    part.add("create sent -> status.finishedAt of a plan of nothing", "ms", ms["finished"])
    job_runs = part.add("bare Job: create sent -> its process runs", "ms", ms["job"])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare("bare Job's process : init", job_runs, init)
    part.compare("init : floor", init, least)
    return part


async def _start_a_task(system: System, name: str) -> dict[str, float]:
    """Milliseconds after the create was sent."""
    agent = await system.await_idle_agent()
    asked = time.time()
    await system.api.create(TASKS, _task(name))
    answered = time.time()
    init = await system.witness.saw("exec", agent, _ENDS_S, "init")
    ended = await system.api.until(
        f"{TASKS}/{name}", lambda task: "finishedAt" in task.get("status", {}), _ENDS_S, f"task {name} should end"
    )
    status = ended["status"]
    if status["phase"] != "Succeeded":
        raise TimeoutError(f"task {name} ended as {status['phase']}: {status['message']}")
    moments = {
        "answered": answered,
        "started": moment(status["startedAt"]),
        "init": init["at"],
        "finished": moment(status["finishedAt"]),
    }
    return {what: (at - asked) * 1000 for what, at in moments.items()}


def _task(name: str) -> dict[str, object]:
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": name},
        "spec": {
            "action": "Plan",
            "workspace": name,
            "poolRef": {"name": POOL},
            "source": {"inline": {"main.tf": 'output "greeting" {\n  value = "hello"\n}\n'}},
        },
    }
