"""The cancel part: PATCH of a task -> SIGINT at terraform, beside DELETE of a bare pod -> SIGTERM in it.

In turn, with a sample of the floor in each round. The moment of the SIGINT is told by two that don't know of
each other: terraform's own log (it handles the interrupt; the strictest, as in the bare pod's process), and
the task's status. The end is what a watch of the bench gets. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict

from tests.bench import bare
from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.limits import LeastRatio, Limit, judge
from tests.bench.rounds import moment, take
from tests.bench.system import TASKS, System
from tests.bench.tasks import ENDS_S, SLOW, Tasks, a_name, a_task, watched_tasks

SENT = "PATCH sent -> terraform handles SIGINT (its own log)"
ANSWERED = "PATCH answered -> terraform handles SIGINT"
CANCELLED = "PATCH sent -> phase Cancelled seen by a watch"
SIGTERM = "DELETE sent -> SIGTERM in the bare pod's process"
RATIO = "bare pod's SIGTERM : terraform's SIGINT"
LIMITS = (Limit(SENT, 50, 8), Limit(SENT, 99, 50), Limit(ANSWERED, 50, 4), Limit(CANCELLED, 50, 60))
LEAST = (LeastRatio(RATIO, 10),)
DRAWN = (SENT, CANCELLED, SIGTERM)


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part("cancel", f"PATCH -> SIGINT at terraform, against DELETE -> SIGTERM in a bare pod, {rounds} rounds")
    ms: dict[str, list[float]] = defaultdict(list)

    async with watched_tasks(system.api) as tasks:

        async def one(number: int) -> str:
            name = a_name("cancel", number)
            task = await _cancel_a_task(system, tasks, name)
            deleted, answered = await bare.delete_to_sigterm_ms(system.api, f"bare-{name}", system.image)
            await floor.sample()
            for what, value in task.items():
                ms[what].append(value)
            ms["deleted"].append(deleted)
            ms["delete answered"].append(answered)
            return f"PATCH -> SIGINT {task['handled']:.1f} ms, DELETE -> SIGTERM {deleted:.0f} ms"

        await take(part, system, rounds, one)
    handled = part.add(SENT, "ms", ms["handled"])
    part.add(ANSWERED, "ms", ms["handled after answer"])
    part.add("PATCH sent -> SIGINT sent (status.cancel.signalledAt)", "ms", ms["signalled"])
    part.add("PATCH sent -> answered", "ms", ms["answered"])
    gone = part.add("PATCH sent -> terraform gone (pidfd on the node)", "ms", ms["gone"])
    part.add("PATCH sent -> status.finishedAt, swept", "ms", ms["finished"])
    part.add(CANCELLED, "ms", ms["cancelled seen"])
    sigterm = part.add(SIGTERM, "ms", ms["deleted"])
    part.add("DELETE sent -> answered", "ms", ms["delete answered"])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare(RATIO, sigterm, handled)
    part.compare("bare pod's SIGTERM : terraform gone", sigterm, gone)
    part.compare("terraform's SIGINT : floor", handled, least)
    part.notes.append(
        "the status turns the agent's age of the signal into the operator's clock when the report comes, so it "
        "may be later than terraform's own log; a negative time after the answer: terraform was quicker than it"
    )
    judge(part, rounds, LIMITS, LEAST, also_counted=[SIGTERM])
    return part


async def _cancel_a_task(system: System, tasks: Tasks, name: str) -> dict[str, float]:
    """Milliseconds after the PATCH was sent."""
    agent = (await system.await_idle_agent())["metadata"]["name"]
    await system.api.create(TASKS, a_task(name, "Apply", SLOW))
    # Well into the apply, with its local-exec running: before that a cancel waits for the gate.
    await tasks.until(name, lambda status: status.get("progress", {}).get("current"), "work on its resource")
    await system.witness.saw("exec", agent, ENDS_S, "apply")
    await asyncio.sleep(random.uniform(1.0, 2.0))
    asked = time.time()
    await system.api.patch(f"{TASKS}/{name}", {"spec": {"cancel": True}})
    answered = time.time()
    seen, status = await tasks.until_ended(name, "Cancelled")
    if status["cancel"]["rung"] != "Interrupt":
        raise TimeoutError(f"task {name} did not stop when asked: {status['message']}")
    handled = (await system.witness.saw("interrupted", agent, ENDS_S, "apply"))["at"]
    gone = (await system.witness.saw("gone", agent, ENDS_S, "apply"))["at"]
    moments = {
        "answered": answered,
        "signalled": moment(status["cancel"]["signalledAt"]),
        "handled": handled,
        "gone": gone,
        "finished": moment(status["finishedAt"]),
        "cancelled seen": seen,
    }
    since = {what: (at - asked) * 1000 for what, at in moments.items()}
    return since | {"handled after answer": (handled - answered) * 1000}
