"""The hand-over part: the processes of a cancelled task are gone -> the next task of its workspace has exec'd `init`.

In a fresh agent, which was there when the cancel came (an agent is replaced after its task), and in the very same agent
(`maxTasksPerAgent`), in turn. Then a few ends by SIGKILL, after which the state's lock is looked at: of a terraform
that stands still, so that it comes at the end of the ladder, and of an apply that has only just begun. Both moments
are looks of the node watcher, which are 5 ms apart. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TypeVar

from tests.bench.figures import Part
from tests.bench.floor import Floor
from tests.bench.kubernetes_api import Json
from tests.bench.limits import Limit, judge
from tests.bench.rounds import moment, take
from tests.bench.system import TASKS, System
from tests.bench.tasks import ENDS_S, QUICK, SLOW, Tasks, a_name, a_task, watched_tasks
from tests.bench.watched import Watched, a_watched_cluster, seen
from tests.e2e.timeline import Process, Timeline


class How(Enum):
    """A cancel may end a task."""

    ASKED = "while its apply runs a program"
    STOPPED = "after the whole ladder"
    """Terraform stands still, and its cancel is one by Force."""
    EARLY = "at the start of the apply"
    """Before its first operation, as far as the cancel is quick enough."""


FRESH, REUSED = (f"processes gone -> next init exec'd, {where}" for where in ("in a fresh agent", "same agent"))
KILLED, EARLY = (
    f"processes gone by KILL {how.value} -> next init exec'd, in a fresh agent" for how in (How.STOPPED, How.EARLY)
)
LIMITS = tuple(Limit(what, percent, ms) for what in (FRESH, REUSED) for percent, ms in ((50, 100), (99, 500)))
DRAWN = (FRESH, REUSED, KILLED, EARLY)
_KILLED_ONES = 4
"""Of so many hand-overs of a kind there is one by each KILL: a ladder takes 20 s, and nothing is judged by them."""
T = TypeVar("T")


async def measure(system: System, floor: Floor, rounds: int) -> Part:
    part = Part(
        "hand-over", f"processes of a cancelled task gone -> next task's init exec'd, {rounds} rounds of a kind"
    )
    ms: dict[str, list[float]] = defaultdict(list)

    async with (
        a_watched_cluster(system) as watched,
        watched_tasks(system.api) as tasks,
        system.a_pool("bench-fresh", minIdle=2, maxAgents=2) as single,
        system.a_pool("bench-reused", minIdle=1, maxAgents=1, maxTasksPerAgent=1000) as reused,
    ):
        bench = _Bench(system, watched, tasks)

        async def one(number: int) -> str:
            fresh = await bench.hand_over(a_name("fresh", number), single, agents=2)
            same = await bench.hand_over(a_name("reused", number), reused, agents=1)
            await floor.sample()
            for kind, found in (("fresh", fresh), ("same", same)):
                for what, value in found.items():
                    ms[f"{kind} {what}"].append(value)
            return f"gone -> next init {fresh['init']:.0f} ms in a fresh agent, {same['init']:.0f} ms in the same agent"

        async def by_kill(number: int, how: How) -> str:
            killed = await bench.hand_over(a_name("killed", number), single, agents=2, how=how)
            ms[how.name].append(killed["init"])
            return f"gone by KILL {how.value} -> next init {killed['init']:.0f} ms"

        await take(part, system, rounds, one)
        for how in (How.STOPPED, How.EARLY):
            await take(part, system, -(-rounds // _KILLED_ONES), partial(by_kill, how=how))
    fresh = part.add(FRESH, "ms", ms["fresh init"])
    same = part.add(REUSED, "ms", ms["same init"])
    part.add("of it, processes gone -> Cancelled seen by a watch, fresh agent", "ms", ms["fresh cancelled"])
    part.add("of it, processes gone -> Cancelled seen by a watch, same agent", "ms", ms["same cancelled"])
    part.add(KILLED, "ms", ms[How.STOPPED.name])
    part.add(EARLY, "ms", ms[How.EARLY.name])
    least = part.add("floor: frame sent -> signal seen", "ms", floor.totals_ms[-rounds:])
    part.compare("in a fresh agent : floor", fresh, least)
    part.compare("in the same agent : floor", same, least)
    judge(part, rounds, LIMITS)
    return part


class _Bench:
    def __init__(self, system: System, watched: Watched, tasks: Tasks) -> None:
        self._system, self._watched, self._tasks = system, watched, tasks

    async def hand_over(self, name: str, pool: str, *, agents: int, how: How = How.ASKED) -> dict[str, float]:
        """Milliseconds after the last process of the cancelled task was seen to be gone; `agents` of the pool: 1 or 2.

        Raises TimeoutError where it did not go as this part wants it: then the round does not count."""
        first, following = f"{name}-a", f"{name}-b"
        await self._system.await_idle_agents(pool, agents)
        await self._create(a_task(first, "Apply", SLOW, pool=pool))
        await self._create(a_task(following, "Plan", QUICK, pool=pool, workspace=first))
        _, task = await self._tasks.until(first, lambda status: "runID" in status, "be given to an agent")
        await self._tasks.until(following, lambda status: "queue" in status, "wait")
        await self._when(how, task["status"]["runID"])
        spec = {"cancel": True} | ({"cancelMode": "Force"} if how is How.STOPPED else {})
        await self._system.api.patch(f"{TASKS}/{first}", {"spec": spec})
        cancelled_at, cancelled = await self._tasks.until_ended(first, "Cancelled")
        _, ended = await self._tasks.until_ended(following, "Succeeded")
        _check(first, cancelled, how)
        is_same = cancelled["agent"]["podUID"] == ended["agent"]["podUID"]
        if is_same != (agents == 1):
            raise TimeoutError(f"{following} ran in {'the same' if is_same else 'another'} agent")
        gone = await self._see(lambda: all_gone(self._watched.timeline, cancelled), f"the end of {first}")
        init = await self._see(lambda: init_of(self._watched.timeline, ended["runID"]), f"init of {following}")
        return {"init": (init - gone) * 1000, "cancelled": (cancelled_at - gone) * 1000}

    async def _when(self, how: How, run: str) -> None:
        """Returns when it is time for the cancel."""
        timeline = self._watched.timeline
        if how is How.EARLY:
            await self._see(lambda: begun(timeline, run, "apply"), f"run {run} to apply")
            return
        terraform = await self._see(lambda: at_work(timeline, run), f"run {run} at work")
        await asyncio.sleep(random.uniform(1.0, 2.0))
        if how is How.STOPPED:
            await self._stop(terraform)

    async def _create(self, task: Json) -> None:
        await self._system.api.create(TASKS, task)

    async def _see(self, look: Callable[[], T | None], what: str) -> T:
        return await seen(self._watched.timeline, look, ENDS_S, what)

    async def _stop(self, terraform: Process) -> None:
        """So that nothing but SIGKILL ends it."""
        about = {"node": terraform.node, "pid": terraform.pid, "ticks": terraform.ticks}
        if not await asyncio.to_thread(self._watched.nodes.kill, about, signal.SIGSTOP):
            raise TimeoutError(f"terraform was gone before it could be stopped: {terraform}")


def _check(name: str, status: Json, how: How) -> None:
    expected = {How.ASKED: "Interrupt", How.STOPPED: "Kill", How.EARLY: "Kill"}[how]
    if status["cancel"]["rung"] != expected:
        raise TimeoutError(
            f"task {name} was ended by {status['cancel']['rung']}, not by {expected}: {status['message']}"
        )


def at_work(timeline: Timeline, run: str) -> Process | None:
    """Terraform's own process, once the program that its apply runs is there too."""
    alive = [p for p in timeline.processes if p.run_id == run and p.gone is None]
    works = any(p.command[:1] == ["sleep"] for p in alive)
    return next((p for p in alive if works and p.is_terraform("apply")), None)


def all_gone(timeline: Timeline, status: Json) -> float | None:
    """The look at which the last process of that run was no more; None while one is there."""
    processes = timeline.of_run(status["runID"], status["agent"]["podUID"], moment(status["startedAt"]))
    ends = [p.gone for p in processes if p.gone is not None]
    return max(ends) if ends and len(ends) == len(processes) else None


def init_of(timeline: Timeline, run: str) -> float | None:
    return begun(timeline, run, "init")


def begun(timeline: Timeline, run: str, verb: str) -> float | None:
    """The first look at which that command of terraform ran there."""
    return min((p.exec_seen for p in timeline.processes if p.run_id == run and p.is_terraform(verb)), default=None)
