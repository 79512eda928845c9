"""One step of `make bench-scale`: so many tasks, a tenth of them on agents, and all that is measured then.

In this order: start-ups, memory, CPU when nothing and when little happens, cancels one at a time, all at once, and what
is started next. Before each there are as many tasks and runs again as were asked for. Times are of the clock that all
processes of the machine share; what an agent receives is told by the simulator, what the API server has by a watch of
our own. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from terrahalt_operator.core.model import CANCELLED
from tests.bench.figures import Part
from tests.bench.progress import say
from tests.bench.scale.stage import Stage
from tests.bench.scale.tasks import MARK, Key, at_once

LEADS = "start-up: process -> leads, the one before has released its Lease"
LEADS_KILLED = "start-up: process -> leads, the one before was killed (its Lease has to end)"
DECIDED = "start-up: process -> first decision"
CONNECTED = "start-up: process -> all agents connected"
SETTLED_CPU = "start-up: CPU until all agents are connected"
RSS, PEAK = "memory with all agents connected", "memory, the most since start-up"
IDLE = "CPU, idle, of a core"
BUSY = "CPU, each run tells of progress every 10 s, of a core"
BUSY_WRITES = "status writes a second, meanwhile"
ONE_ANSWER = "one cancel: PATCH sent -> answered"
ONE_FRAME = "one cancel: PATCH sent -> Cancel at the agent"
ONE_CANCELLED = "one cancel: PATCH sent -> phase Cancelled seen"
FLOOR_ANSWER = "floor, all at once, no operator: PATCH sent -> answered"
FLOOR_SEEN = "floor, all at once, no operator: PATCH sent -> seen by a watch"
ALL_ANSWER = "all at once: PATCH sent -> answered"
ALL_FRAMES = "all at once: PATCH sent -> Cancel at the agent"
ALL_CANCELLED = "all at once: PATCH sent -> phase Cancelled seen"
ALL_CPU = "all at once: CPU until all are Cancelled"
NEXT = "all at once: first PATCH sent -> each next task started on a fresh agent"
STARTS = "next tasks started a second"
_SETTLES_S = 900.0
_PROGRESS_S = 10.0
_NOWHERE = "there-is-none"


@dataclass(frozen=True, slots=True)
class Size:
    tasks: int
    agents: int
    starts: int
    idle_s: float
    cancels: int
    profile: Path | None


async def measure(stage: Stage, size: Size) -> Part:
    part = Part(f"{size.tasks:,} tasks", f"one operator, {size.agents:,} of them on agents")
    say(f"{size.tasks:,} tasks: making them, and {size.agents:,} agents")
    if stage.operator is None:
        await stage.start()
    await stage.tasks.resize(size.agents)
    began = time.monotonic()
    await _settle(stage, size)
    part.notes.append(f"all tasks were made and {size.agents:,} ran after {time.monotonic() - began:.0f} s")
    await _start_ups(stage, size, part)
    await _rest(stage, size, part)
    await _cancel_one_by_one(stage, size, part)
    floor = [row for row in part.rows if row.what in (FLOOR_ANSWER, FLOOR_SEEN)]
    part.rows = [row for row in part.rows if row not in floor] + floor  # beside what it is the floor of
    await _cancel_all(stage, size, part)
    assert stage.operator is not None
    if stage.operator.depositions:
        part.notes.append(
            f"it was deposed {stage.operator.depositions} times: the API server was too slow for its Lease"
        )
    if stage.operator.complaints:
        part.notes.append(
            f"{len(stage.operator.complaints)} warnings in its log, first: {stage.operator.complaints[0]}"
        )
    return part


async def _settle(stage: Stage, size: Size) -> None:
    """As many tasks and runs as were asked for, and nothing on its way."""
    await stage.tasks.fill(size.tasks)
    await _all_run(stage, size)
    if not await stage.tasks.until_quiet(60.0):
        say("statuses are still being written; measuring all the same")
    await stage.agents.ask("frames")


async def _all_run(stage: Stage, size: Size) -> None:
    """As agents and API server have it."""
    await stage.agents.until(_SETTLES_S, applying=size.agents, connected=size.agents, missing=0)
    await stage.tasks.until(
        lambda: len(stage.tasks.applying()) == size.agents, _SETTLES_S, f"{size.agents} tasks should apply"
    )


async def _start_ups(stage: Stage, size: Size, part: Part) -> None:
    """While there is no operator, a run is cancelled and a task made: the first command and the first write of the next
    one are about these. The pool of that task does not exist, so that nothing else follows."""
    found: dict[str, list[float]] = {what: [] for what in (LEADS, LEADS_KILLED, DECIDED, CONNECTED, SETTLED_CPU)}
    for number in range(size.starts):
        by = signal.SIGKILL if number == 0 else signal.SIGTERM
        say(f"start-up {number + 1} of {size.starts}, after {by.name}")
        assert stage.operator is not None
        await stage.operator.end(by)
        await stage.agents.until(60, connected=0)
        if number == 0:
            await _floor(stage, part)
        victim = random.choice(stage.tasks.applying())
        fresh = stage.tasks.namespaces[0], f"fresh-{time.time_ns()}"
        await stage.tasks.cancel(victim)
        await stage.tasks.create(*fresh, _NOWHERE)
        operator = await stage.start(size.profile if number == size.starts - 1 else None)
        # The victim's agent ends, and its successor is there before long: as many as before.
        first = [await stage.tasks.until_stamped(fresh, 300)]
        connected_at = await stage.agents.until(300, missing=0)
        cpu_s = operator.cpu_s
        frames = (await stage.agents.ask("frames"))["cancels"]
        first += [frames[name] for name in ("/".join(victim),) if name in frames]
        found[LEADS_KILLED if by is signal.SIGKILL else LEADS].append(operator.leads.result() - operator.began)
        found[DECIDED].append(min(first) - operator.began)
        found[CONNECTED].append(connected_at - operator.began)
        found[SETTLED_CPU].append(cpu_s)
        await stage.tasks.cancel(fresh)
        await _settle(stage, size)
    for what, samples in found.items():
        part.add(what, "s", samples)


async def _floor(stage: Stage, part: Part) -> None:
    """What the API server and this driver take for as many PATCHes at once, with nobody who acts upon them."""
    keys = stage.tasks.applying()
    mark = str(time.time_ns())
    await stage.tasks.connect()
    times = await at_once(stage.tasks.patch(key, {"metadata": {"annotations": {MARK: mark}}}) for key in keys)
    await stage.tasks.until(lambda: all(stage.tasks.seen[k].mark == mark for k in keys), 60, "marks should be seen")
    seen = [stage.tasks.seen[key].marked_at for key in keys]
    part.add(FLOOR_ANSWER, "ms", _ms((sent, answered) for sent, answered in times))
    part.add(FLOOR_SEEN, "ms", _ms(zip((sent for sent, _ in times), seen, strict=True)))


async def _rest(stage: Stage, size: Size, part: Part) -> None:
    operator = stage.operator
    assert operator is not None
    say(f"idle for {size.idle_s:.0f} s, then with progress")
    part.add(RSS, "MiB", [operator.memory_mib()])
    part.add(PEAK, "MiB", [operator.memory_mib("VmHWM")])
    for what, every_s in ((IDLE, 0.0), (BUSY, _PROGRESS_S)):
        await stage.agents.ask("progress", every_s=every_s)
        cpu_s, began, changes = operator.cpu_s, time.monotonic(), stage.tasks.changes
        await asyncio.sleep(size.idle_s)
        took_s = time.monotonic() - began
        part.add(what, "%", [(operator.cpu_s - cpu_s) / took_s * 100])
        if every_s:
            part.add(BUSY_WRITES, "/s", [(stage.tasks.changes - changes) / took_s])
    await stage.agents.ask("progress", every_s=0.0)
    await _settle(stage, size)


async def _cancel_one_by_one(stage: Stage, size: Size, part: Part) -> None:
    say(f"{size.cancels} cancels, one at a time")
    asked: dict[Key, tuple[float, float]] = {}
    ended: dict[Key, float] = {}
    queue = max(1, (size.tasks - size.agents) // len(stage.tasks.pools))  # of one pool, which chance may empty
    frames: dict[str, float] = {}
    for number in range(size.cancels):
        key = random.choice(stage.tasks.applying())
        asked[key] = await stage.tasks.cancel(key)
        ended[key] = await stage.tasks.until_phase(key, CANCELLED, 60)
        frames |= (await stage.agents.ask("frames"))["cancels"]
        if number % queue == queue - 1:
            await _settle(stage, size)
        # Its successor has begun: each one meets the same system.
        await _all_run(stage, size)
        await asyncio.sleep(random.uniform(0.0, 0.2))
    part.add(ONE_ANSWER, "ms", _ms(asked.values()))
    part.add(ONE_FRAME, "ms", _ms((sent, frames["/".join(key)]) for key, (sent, _) in asked.items()))
    part.add(ONE_CANCELLED, "ms", _ms((sent, ended[key]) for key, (sent, _) in asked.items()))
    await _settle(stage, size)


async def _cancel_all(stage: Stage, size: Size, part: Part) -> None:
    keys = stage.tasks.applying()
    say(f"{len(keys)} cancels at once, and what is started next")
    operator = stage.operator
    assert operator is not None
    await stage.tasks.connect()
    cpu_s, began = operator.cpu_s, time.monotonic()
    times = dict(zip(keys, await at_once(stage.tasks.cancel(key) for key in keys), strict=True))
    sights = [stage.tasks.seen[key] for key in keys]
    await stage.tasks.until(lambda: all(CANCELLED in s.at for s in sights), 600, "all should be cancelled")
    part.add(ALL_CPU, "s", [operator.cpu_s - cpu_s])
    frames = await stage.agents.ask("frames")
    starts = frames["starts"]
    await stage.agents.until(_SETTLES_S, applying=size.agents, missing=0)
    starts |= (await stage.agents.ask("frames"))["starts"]
    part.add(ALL_ANSWER, "ms", _ms(times.values()))
    cancels = frames["cancels"]
    frame = part.add(ALL_FRAMES, "ms", _ms((times[key][0], cancels["/".join(key)]) for key in keys))
    part.add(ALL_CANCELLED, "ms", _ms((times[k][0], s.at[CANCELLED]) for k, s in zip(keys, sights, strict=True)))
    part.compare(f"{ALL_FRAMES} : floor, seen by a watch", frame, next(r for r in part.rows if r.what == FLOOR_SEEN))
    begun = sorted(starts.values())
    part.add(NEXT, "s", (at - began for at in begun))
    if len(begun) > 1:
        part.add(STARTS, "/s", [(len(begun) - 1) / (begun[-1] - begun[0])])


def _ms(pairs: Iterable[tuple[float, float]]) -> list[float]:
    return [(until - since) * 1000 for since, until in pairs]
