"""Carries out one round's plan: each run on an agent of its own, with its troubles at their moments.

Tells what it did and what it saw, and judges nothing; what finds nothing to be done to (an end that was there
first, no provider any more) is told as missed. Called by `test_random_runs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from terrahalt_protocol.messages import CancelMode, CancelReason, Report, Step
from terrahalt_protocol.signing import unseal
from tests import engine
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import KEY, RUN_ID, AgentProcess, Operator, an_agent, an_operator, command_lines
from tests.agent_terraform.soak.places import FOREIGN, Place, Servers, a_place
from tests.agent_terraform.soak.plan import COMMAND, Happening, Plan, PlannedRun, Trouble
from tests.backends.faults import HttpFaults
from tests.cloud import Cloud, a_cloud

HAPPENED_WITHIN_S = 10.0
"""From the start: what waits for a step that does not come, as the one before it hangs, is not waited for longer."""
HURRIED_AFTER_S = 8.0
"""From the cancel that closes a run to a Force: a gate alone may wait for 60 s."""
ENDED_WITHIN_S = 75.0
"""From there: the rungs take up to 30 s, a look at what is left up to 30, and this machine its time."""
SETTLED_WITHIN_S = 5.0
"""For the kernel's news of closed connections to arrive."""
FOREVER_S = 3600.0
_ORDER = list(Step)


@dataclass(frozen=True)
class Seen:
    """Outside of terraform and of the agent."""

    objects: frozenset[str]
    """In the cloud."""
    begun: Counter[str]
    marks: frozenset[str]
    """Names of commands that have come to their end, in this run or one before."""
    state: bytes
    lock_id: str

    @property
    def saved(self) -> dict[str, Any] | None:
        """None: it can't be read, or there is none."""
        try:
            found = json.loads(self.state)
        except ValueError:
            return None
        assert isinstance(found, dict)
        return found

    @property
    def things(self) -> frozenset[str]:
        """Names of those that the state has."""
        return frozenset(r["name"] for r in self._resources if r["type"] == "trial_thing" and r["instances"])

    @property
    def unlike(self) -> frozenset[str]:
        """Names of which the state does not tell what is."""
        whole = {r["name"] for r in self._resources if r["instances"] and r["instances"][0].get("status") != "tainted"}
        commands = {name for name in whole if name.startswith(COMMAND)}
        return (self.things ^ self.objects) | (commands - self.marks)

    @property
    def _resources(self) -> list[dict[str, Any]]:
        found = (self.saved or {}).get("resources", [])
        assert isinstance(found, list)
        return found


@dataclass
class Ran:
    """A run, as it was seen."""

    planned: PlannedRun
    before: Seen
    after: Seen | None = None
    """As soon as its report was there."""
    settled: Seen | None = None
    """When all requests that were on their way have arrived too."""
    report: Report | None = None
    done: list[Happening] = field(default_factory=list)
    """Without those that were missed."""
    asked: set[str] = field(default_factory=set)
    """Reasons that a cancel of it may have, by what was asked."""
    alive: list[str] = field(default_factory=list)
    """Command lines of what was alive below the agent when its report came."""
    at_work: list[tuple[str, str]] = field(default_factory=list)
    """Operations in the cloud that did not end with it."""
    has_apply: bool = False
    """terraform was started for it."""
    sealed: Report | None = None
    """What the termination message says."""
    agent_ended: int | None = None
    """None: it has not, though its report was acknowledged."""
    diary: list[str] = field(default_factory=list)
    log: str = ""
    took_s: float = 0.0

    def hit(self, *troubles: Trouble) -> bool:
        return any(happening.trouble in troubles for happening in self.done)


class Run:
    def __init__(self, ran: Ran, agent: AgentProcess, operator: Operator, place: Place) -> None:
        self._ran = ran
        self._agent = agent
        self._operator = operator
        self._place = place
        self._over = asyncio.Event()
        self._began = time.monotonic()

    async def carry_out(self, files: dict[str, str], **fields: Any) -> None:
        """Returns when it has ended, or is given up."""
        await self._operator.start(files, **fields)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch())
            happenings = [tasks.create_task(self._happen(happening)) for happening in self._ran.planned.happenings]
            if happenings:
                await asyncio.wait(happenings, timeout=HAPPENED_WITHIN_S)
            await self._close()
            watch.cancel()

    async def _watch(self) -> None:
        """What is alive is looked at in the moment of the report."""
        report = asyncio.create_task(self._operator.final_report(FOREVER_S))
        gone = asyncio.create_task(self._agent.process.wait())
        try:
            await asyncio.wait({report, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not report.done():
                await asyncio.wait({report}, timeout=1.0)  # it may be on its way
            self._ran.alive = command_lines(self._agent.descendants())
            if report.done():
                self._ran.report = report.result()
        finally:
            for task in (report, gone):
                task.cancel()
            self._say("its report is here" if self._ran.report else "the agent has ended without a report")
            self._over.set()

    async def _close(self) -> None:
        if await self._is_over_within(self._ran.planned.closes_after_s):
            return
        self._say("it is cancelled, to close")
        await self._cancel(CancelMode.GRACEFUL, grace_s=1)
        if await self._is_over_within(HURRIED_AFTER_S):
            return
        self._say("it is forced, to close")
        await self._cancel(CancelMode.FORCE)
        await self._is_over_within(ENDED_WITHIN_S)

    async def _happen(self, happening: Happening) -> None:
        reached = self._operator.until(lambda: self._has_reached(happening.at.step), FOREVER_S)
        if await self._is_before_end(reached) and not await self._is_over_within(happening.at.after_s):
            begun_s = time.monotonic() - self._began
            if await self._carry_out(happening):
                self._ran.done.append(happening)
                self._say(f"{happening} (from {begun_s:.3f})")
                return
        self._say(f"{happening} (missed)")

    async def _carry_out(self, happening: Happening) -> bool:
        match happening.trouble:
            case Trouble.CANCEL:
                return await self._cancel(CancelMode.GRACEFUL)
            case Trouble.CANCEL_TWICE:
                return await self._cancel(CancelMode.GRACEFUL) and await self._cancel(CancelMode.GRACEFUL)
            case Trouble.DELETE:
                return await self._cancel(CancelMode.GRACEFUL, CancelReason.DELETION)
            case Trouble.FORCE:
                return await self._cancel(CancelMode.FORCE)
            case Trouble.SHORTEN:
                return await self._cancel(CancelMode.GRACEFUL, grace_s=1)
            case Trouble.SIGTERM:
                self._ran.asked.add("CancelledByPodTermination")
                return self._signal_agent(signal.SIGTERM)
            case Trouble.KILL_TERRAFORM:
                return self._signal(engine.NAME, signal.SIGKILL)
            case Trouble.KILL_PROVIDER:
                return self._signal("terraform-provider-", signal.SIGKILL)
            case Trouble.STOP_TERRAFORM:
                return self._signal(engine.NAME, signal.SIGSTOP)
            case Trouble.STOP_PROVIDER:
                return self._signal("terraform-provider-", signal.SIGSTOP)
            case Trouble.KILL_ALL:
                return self._kill_all()
            case Trouble.FREEZE_AGENT:
                frozen = self._signal_agent(signal.SIGSTOP)
                await self._is_over_within(happening.lasts_s or 0.0)
                return self._signal_agent(signal.SIGCONT) and frozen
            case Trouble.BACKEND:
                return await self._break_backend(happening)

    async def _cancel(
        self, mode: CancelMode, reason: CancelReason = CancelReason.USER, grace_s: int | None = None
    ) -> bool:
        self._ran.asked.add(f"CancelledBy{reason.value}")
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await self._operator.cancel(mode, reason=reason, grace_s=grace_s)
            return True
        return False

    def _signal_agent(self, number: signal.Signals) -> bool:
        with contextlib.suppress(ProcessLookupError):
            self._agent.process.send_signal(number)
            return self._agent.process.returncode is None
        return False

    def _signal(self, program: str, number: signal.Signals) -> bool:
        """To each process of it."""
        hit = False
        for pid in self._agent.descendants():
            name = "".join(command_lines([pid])).partition(" ")[0].rpartition("/")[2]
            if name == program or (program.endswith("-") and name.startswith(program)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    hit = True
        return hit

    def _kill_all(self) -> bool:
        """As the kernel does where the first process of a container is killed: nothing of it is left."""
        if not self._signal_agent(signal.SIGSTOP):
            return False
        while pids := self._agent.descendants():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return self._signal_agent(signal.SIGKILL)

    async def _break_backend(self, happening: Happening) -> bool:
        faults, verb = self._place.faults, happening.verb
        assert faults is not None
        assert happening.fault is not None
        faults.fail(verb, happening.fault)
        if happening.lasts_s is not None:
            await self._is_over_within(happening.lasts_s)
            faults.mend(verb)
        return True

    def _has_reached(self, step: Step) -> bool:
        return any(_ORDER.index(report.step) >= _ORDER.index(step) for report in self._operator.reports)

    async def _is_over_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    async def _is_before_end(self, event: Awaitable[Any]) -> bool:
        waiting, over = asyncio.ensure_future(event), asyncio.create_task(self._over.wait())
        await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        over.cancel()
        return not self._over.is_set()

    def _say(self, text: str) -> None:
        self._ran.diary.append(f"{time.monotonic() - self._began:.3f} {text}")


@dataclass
class Round:
    plan: Plan
    folder: Path
    authority: Authority
    env: dict[str, str]
    servers: Servers
    runs: list[Ran] = field(default_factory=list)

    @asynccontextmanager
    async def _beginning(self) -> AsyncIterator[tuple[Place, Cloud]]:
        for name in ("states", "marks"):
            (self.folder / name).mkdir(parents=True)
        name = f"round_{self.plan.number}_{os.getpid()}"
        place = a_place(self.plan.place, name, self.folder / "states", self.servers)
        async with a_cloud() as cloud, place as its_place:
            yield its_place, cloud

    async def run(self) -> AsyncGenerator[Ran, None]:
        """Each run when it is over; the next one begins when it is asked for."""
        async with self._beginning() as (place, cloud):
            for number, planned in enumerate(self.plan.runs):
                if planned.frees_lock:
                    place.free()
                if planned.has_foreign_lock:
                    place.put_lock(FOREIGN)
                ran = Ran(planned, await self._look(place, cloud))
                self.runs.append(ran)
                folder = self.folder / str(number)
                folder.mkdir()
                await self._carry_out(ran, folder, place, cloud)
                yield ran

    async def _carry_out(self, ran: Ran, folder: Path, place: Place, cloud: Cloud) -> None:
        planned, began = ran.planned, time.monotonic()
        marks = self.folder / "marks"
        env = self.env | {"TRIAL_CLOUD": cloud.url, "TERRAHALT_LOCAL_STATES": str(self.folder / "states")}
        waits = {"lock_timeout_s": 1} if ran.before.lock_id else {}
        async with an_agent(folder, self.authority, **env) as agent, an_operator(agent) as operator:
            fields = {"action": planned.action, **waits, **planned.limits}
            files = planned.shape.files(str(marks))
            await Run(ran, agent, operator, place).carry_out(files, **place.fields(files), **fields)
            ran.after = await self._look(place, cloud)
            ran.has_apply = (agent.work / RUN_ID / "logs/apply.jsonl").exists()
            if ran.report is not None:
                ran.sealed = unseal(agent.termination_message, KEY, RUN_ID)
                with contextlib.suppress(ConnectionError, aiohttp.ClientError, TimeoutError):
                    await operator.ack()
                    ran.agent_ended = await agent.ended()
            ran.log = agent.log
        with contextlib.suppress(TimeoutError):
            await cloud.until_nobody_works(SETTLED_WITHIN_S)
        ran.at_work = list(cloud.at_work)
        if place.faults is not None:
            place.faults.mend()
        if isinstance(place.faults, HttpFaults):
            await place.faults.until_idle()
        ran.settled = await self._look(place, cloud)
        ran.took_s = time.monotonic() - began

    async def _look(self, place: Place, cloud: Cloud) -> Seen:
        marks = frozenset(os.listdir(self.folder / "marks"))
        return Seen(frozenset(cloud.objects), cloud.begun.copy(), marks, await place.state(), await _lock_of(place))

    def story(self, problems: Sequence[str]) -> str:
        parts = [str(self.plan)]
        for number, ran in enumerate(self.runs):
            parts += [f"run {number}, what was done:", *(f"  {line}" for line in ran.diary)]
            parts.append(f"  its result: {ran.report.result if ran.report else None}")
            for when, seen in (("before", ran.before), ("after", ran.after), ("settled", ran.settled)):
                if seen is not None:
                    parts.append(f"  {when}: in the cloud {sorted(seen.objects)}, in the state {sorted(seen.things)}")
                    parts.append(
                        f"    not told by it as it is {sorted(seen.unlike)}, commands done {sorted(seen.marks)}"
                    )
                    parts.append(f"    lock {seen.lock_id or 'free'}, state of {len(seen.state)} bytes")
            parts += ["  the agent's log, its end:", *(f"    {line[:300]}" for line in ran.log.splitlines()[-40:])]
        return "\n".join([*parts, *(f"VIOLATION: {problem}" for problem in problems)])


async def _lock_of(place: Place) -> str:
    """A session's lock ends when the server has heard that it is gone."""
    for _ in range(20):
        lock_id = await place.lock_id()
        if not lock_id or not place.ends_with_process:
            break
        await asyncio.sleep(0.1)
    return lock_id
