"""The cancel part: PATCH of a task -> SIGINT at terraform, beside DELETE of a bare pod -> SIGTERM in it.

In turn, with a sample of the floor in each round. The moment of the SIGINT is told by two that don't know of
each other: terraform's own log (it handles the interrupt; the strictest, as in the bare pod's process), and
the task's status. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict

from tests.bench import bare
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.rounds import moment, take
from tests.bench.system import POOL, TASKS, System

_RUNS_S = 60.0
_ENDS_S = 60.0
# Runs for minutes, stops when terraform is asked to, and needs no provider.
_SLOW = """
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    interpreter = ["sleep"]
    command     = "300"
  }
}
"""


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part("cancel", f"PATCH -> SIGINT at terraform, against DELETE -> SIGTERM in a bare pod, {rounds} rounds")
    ms: dict[str, list[float]] = defaultdict(list)

    async def one(number: int) -> str:
        name = f"cancel-{time.time_ns() // 1_000_000 % 10**9}-{number}"
        task = await _cancel_a_task(system, name)
        deleted, answered = await bare.delete_to_sigterm_ms(system.api, f"bare-{name}", system.image)
        await floor.sample()
        for what, value in task.items():
            ms[what].append(value)
        ms["deleted"].append(deleted)
        ms["delete answered"].append(answered)
        return f"PATCH -> SIGINT {task['handled']:.1f} ms, DELETE -> SIGTERM {deleted:.0f} ms"

    await take(part, system, rounds, one)
    handled = part.add("PATCH sent -> terraform handles SIGINT (its own log)", "ms", ms["handled"])
    part.add("PATCH answered -> terraform handles SIGINT", "ms", ms["handled after answer"])
    part.add("PATCH sent -> SIGINT sent (status.cancel.signalledAt)", "ms", ms["signalled"])
    part.add("PATCH sent -> answered", "ms", ms["answered"])
    gone = part.add("PATCH sent -> terraform gone (pidfd on the node)", "ms", ms["gone"])
    part.add("PATCH sent -> status.finishedAt, swept", "ms", ms["finished"])
    sigterm = part.add("DELETE sent -> SIGTERM in the bare pod's process", "ms", ms["deleted"])
    part.add("DELETE sent -> answered", "ms", ms["delete answered"])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare("bare pod's SIGTERM : terraform's SIGINT", sigterm, handled)
    part.compare("bare pod's SIGTERM : terraform gone", sigterm, gone)
    part.compare("terraform's SIGINT : floor", handled, least)
    part.notes.append(
        "the status turns the agent's age of the signal into the operator's clock when the report comes, so it "
        "may be later than terraform's own log; a negative time after the answer: terraform was quicker than it"
    )
    return part


async def _cancel_a_task(system: System, name: str) -> dict[str, float]:
    """Milliseconds after the PATCH was sent."""
    agent = (await system.await_idle_agent())["metadata"]["name"]
    await system.api.create(TASKS, _task(name))
    path = f"{TASKS}/{name}"
    await system.api.until(
        path, lambda task: task.get("status", {}).get("phase") == "Applying", _RUNS_S, f"task {name} should apply"
    )
    await system.witness.saw("exec", agent, _RUNS_S, "apply")
    await asyncio.sleep(random.uniform(1.0, 2.0))  # well into the apply, with its local-exec running
    asked = time.time()
    await system.api.patch(path, {"spec": {"cancel": True}})
    answered = time.time()
    ended = await system.api.until(
        path, lambda task: "finishedAt" in task.get("status", {}), _ENDS_S, f"task {name} should be cancelled"
    )
    status = ended["status"]
    if status["phase"] != "Cancelled" or status["cancel"]["rung"] != "Interrupt":
        raise TimeoutError(f"task {name} did not stop when asked: {status['phase']}, {status['message']}")
    handled = (await system.witness.saw("interrupted", agent, _ENDS_S, "apply"))["at"]
    gone = (await system.witness.saw("gone", agent, _ENDS_S, "apply"))["at"]
    moments = {
        "answered": answered,
        "signalled": moment(status["cancel"]["signalledAt"]),
        "handled": handled,
        "gone": gone,
        "finished": moment(status["finishedAt"]),
    }
    since = {what: (at - asked) * 1000 for what, at in moments.items()}
    return since | {"handled after answer": (handled - answered) * 1000}


def _task(name: str) -> dict[str, object]:
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": name},
        "spec": {
            "action": "Apply",
            "workspace": name,
            "poolRef": {"name": POOL},
            "source": {"inline": {"main.tf": _SLOW}},
        },
    }
