"""Deliberate bugs, each one guard of the product taken out, and the seed whose history shows it.

The simulator that does not find them is blind. `make simulate-bugs` finds a seed for each anew, where the histories
have changed; `test_bugs` plays the recorded ones. What takes several rare things at once is found by one seed in
twenty thousand or fewer: then it is the history of such a seed that is recorded, made short, in `kept.txt`, or one much
like it, where the product takes other steps since.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from msgspec.structs import replace

from terrahalt_agent.adapters import server
from terrahalt_agent.core import agent as agent_core
from terrahalt_agent.core import events
from terrahalt_agent.core import run as run_core
from terrahalt_operator import effects, reconciler, store, world
from terrahalt_operator.adapters import agents, objects
from terrahalt_operator.core import commands, decide, fit, model, queue, retire, schedule, status
from terrahalt_operator.core.actions import Decision, DeleteTask, ReleaseClaim, Send, WriteStatus
from terrahalt_operator.core.model import Ended, Snapshot, StateLock
from terrahalt_protocol import signing
from terrahalt_protocol.messages import Ack, Cancel, CancelMode
from tests.simulation import kept
from tests.simulation.__main__ import quietly
from tests.simulation.history import History, of_seed, replayed

Patch = tuple[object, str, object]
WITHIN_SEEDS = 20_000


@dataclass(frozen=True, slots=True)
class Bug:
    what: str
    invariant: str
    """Number of one that it breaks, as the judge names it."""
    seed: int
    patches: Callable[[], Sequence[Patch]]
    story: str = ""
    """The head of its history in `kept.txt`, where that is recorded, found once by `seed`."""


BUGS: list[Bug] = []


def bug(what: str, invariant: str, seed: int, story: str = "") -> Callable[[Callable[[], Sequence[Patch]]], None]:
    def note(patches: Callable[[], Sequence[Patch]]) -> None:
        BUGS.append(Bug(what, invariant, seed, patches, story))

    return note


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    patches = [mock.patch.object(target, name, new) for target, name, new in bug.patches()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def found_by(bug: Bug, seed: int) -> History | None:
    """The history of this seed, if the bug breaks its invariant there."""
    return _breaking(bug, of_seed(seed))


def found_by_story(bug: Bug) -> History | None:
    """The same of its recorded history."""
    (told,) = (each.history for each in kept.read(kept.FILE.read_text(encoding="utf-8")) if each.what == bug.story)
    return _breaking(bug, replayed(told.setting, told.moves))


def _breaking(bug: Bug, history: History) -> History | None:
    return history if history.violation.startswith(bug.invariant) else None


def _policy(name: str, new: Callable[..., Any]) -> Sequence[Patch]:
    policies = tuple(new if policy.__name__ == name else policy for policy in decide.POLICIES)
    return [(decide, "POLICIES", policies)]


def _before_the_end(comes_first: Callable[[Any], bool]) -> Sequence[Patch]:
    real = decide._end

    def hasty(*args: Any) -> Decision:
        return Decision(tuple(sorted(real(*args).actions, key=lambda action: not comes_first(action))))

    return [(decide, "_end", hasty)]


# ---- invariant 1


@bug("the agent tells the end before the sweep", "1", 0)
def _() -> Sequence[Patch]:
    def sweep(self: Any, now_s: float) -> Any:
        self._stage = run_core.Stage.SWEEPING
        return self._note_swept(now_s)

    return [(run_core.Run, "_sweep", sweep)]


@bug("a task has ended once its terraform has exited", "1", 48)
def _() -> Sequence[Patch]:
    ended = decide.run_reported_its_end

    def has_exited(s: Snapshot, now: float) -> Decision | None:
        cancel = s.report.report.cancel if s.report else None
        if s.claim is not None and cancel is not None and cancel.ages.exited_s is not None:
            new = status.ended_unstarted(s, model.CANCELLED, "CancelledByUser", "", now)
            return Decision((WriteStatus(s.task, new), ReleaseClaim(s.claim)))
        return ended(s, now)

    return _policy("run_reported_its_end", has_exited)


@bug("a cancelled task is called Cancelled at once", "1", 3)
def _() -> Sequence[Patch]:
    def at_once(s: Snapshot, now: float) -> Decision | None:
        if not s.task.spec.cancel or s.task.spec.cancel_mode is model.CancelMode.ABANDON:
            return None
        new = status.ended_unstarted(s, model.CANCELLED, "CancelledByUser", "", now)
        return Decision((WriteStatus(s.task, new),))

    return _policy("task_was_cancelled_in_the_queue", at_once)


@bug("the pod's phase is trusted", "1", 1891)
def _() -> Sequence[Patch]:
    real = objects.agent

    def believing(obj: Any) -> Any:
        agent = real(obj)
        if agent.ended is None and agent.container_id and agent.phase == "Failed":
            ended = Ended(container_id=agent.container_id, exit_code=137, reason="", message="", finished_at=0.0)
            return replace(agent, ended=ended, is_running=False)
        return agent

    return [(objects, "agent", believing)]


@bug("a pod that is not found is taken for an end", "1", 167)
def _() -> Sequence[Patch]:
    real = decide.agent_ended_without_a_report

    def gone_is_ended(s: Snapshot, now: float) -> Decision | None:
        if s.claim is not None and s.agent is None:
            unknown = StateLock(is_readable=False, holder="")
            return decide._end(s, status.lost(s, s.claim, unknown, "NotFound", now))
        return real(s, now)

    return _policy("agent_ended_without_a_report", gone_is_ended)


@bug("the finalizer is taken from a pod that goes, though it is claimed", "1", 19)
def _() -> Sequence[Patch]:
    real = retire.bury

    def hasty(over: Any, alive: Any, *, kept: int) -> Any:
        return real(over, [replace(view, claim=None) for view in alive], kept=kept)

    async def never(self: Any, agent: Any) -> bool:
        return False

    return [
        (retire, "bury", hasty),
        (retire, "_is_given_up", lambda agent: agent.is_deleting),
        (effects.Effects, "_is_claimed", never),
    ]


# ---- invariant 2


@bug("no claim is made", "2", 1)
def _() -> Sequence[Patch]:
    real = effects.Effects._claim

    class Nowhere:
        def __init__(self, cluster: Any) -> None:
            self._cluster = cluster

        def __getattr__(self, name: str) -> Any:
            return getattr(self._cluster, name)

        async def create(self, _resource: Any, _namespace: str, body: Any) -> Any:
            return body | {"metadata": body["metadata"] | {"resourceVersion": "1"}}

    async def claim(self: Any, *rest: Any) -> None:
        cluster, self._cluster = self._cluster, Nowhere(self._cluster)
        try:
            await real(self, *rest)
        finally:
            self._cluster = cluster

    return [(effects.Effects, "_claim", claim)]


@bug("a claim that somebody else holds is taken for one's own", "2", 2637)
def _() -> Sequence[Patch]:
    def hold(self: Any, key: Any, asked: Any, lease: Any) -> None:
        self._world.claims.put(replace(asked, resource_version=lease["metadata"]["resourceVersion"]))
        self._worklist.wake(("task", asked.task_uid))

    return [(effects.Effects, "_hold", hold)]


@bug("a list that is older than an object is trusted", "5", 479)
def _() -> Sequence[Patch]:
    def gone(self: Any, present: Any, list_version: int) -> Any:
        known = set(present)
        return [uid for uid in self.values if uid not in known]

    return [(store.Shelf, "gone", gone)]


@bug("a claim is released before its task's end is on record", "7", 1)
def _() -> Sequence[Patch]:
    return _before_the_end(lambda action: isinstance(action, ReleaseClaim))


@bug("the claim of a task that is gone is released at once", "2", 5)
def _() -> Sequence[Patch]:
    return [(reconciler, "decide_orphan", lambda claim, *_, **__: Decision((ReleaseClaim(claim),)))]


# ---- invariants 3 and 4


@bug("a status is written without the resourceVersion", "3", 57)
def _() -> Sequence[Patch]:
    real = objects.status_patch
    return [(objects, "status_patch", lambda old, new: {"status": real(old, new)["status"]})]


@bug("a restored copy is run", "3", 10)
def _() -> Sequence[Patch]:
    return [(model.Task, "is_restored_copy", property(lambda self: False))]


@bug("an end that was not signed is believed", "4", 2336)
def _() -> Sequence[Patch]:
    def credulous(message: str, key: str, run_id: str) -> Any:
        with mock.patch("hmac.compare_digest", return_value=True):
            return signing.unseal(message, key, run_id)

    return [(world, "unseal", credulous)]


@bug("the termination message is not read", "4", 6)
def _() -> Sequence[Patch]:
    return [(world, "unseal", lambda *_: None)]


# ---- invariants 5 to 9


@bug("a cancel is not sent again after a reconnect", "5", 280)
def _() -> Sequence[Patch]:
    real = decide._cancel

    def once(s: Snapshot, claim: Any, **rest: Any) -> Any:
        cancel = s.task.status.cancel
        return () if cancel is not None and cancel.sent_at else real(s, claim, **rest)

    return [(decide, "_cancel", once)]


@bug("a tombstone is dropped", "5", 5907)
def _() -> Sequence[Patch]:
    real = agent_core.Agent._cancel

    def forgetful(self: Any, connection: int, cancel: Any, now_s: float) -> Any:
        todo = real(self, connection, cancel, now_s)
        if isinstance(self._runs[cancel.run_id], agent_core._Tombstone):
            del self._runs[cancel.run_id]
        return todo

    return [(agent_core.Agent, "_cancel", forgetful)]


@bug("the next step starts although the run was cancelled", "5", 13)
def _() -> Sequence[Patch]:
    real = run_core.Run._after_process

    def heedless(self: Any, is_whole: bool, now_s: float) -> Any:
        kept, self._cancel = self._cancel, None
        try:
            return real(self, is_whole, now_s)
        finally:
            self._cancel = kept

    return [(run_core.Run, "_after_process", heedless)]


@bug("a second Start begins the run anew", "6", 7)
def _() -> Sequence[Patch]:
    real = agent_core.Agent._start

    def again(self: Any, connection: int, start: Any, now_s: float) -> Any:
        known = self._runs.get(start.run_id)
        if isinstance(known, run_core.Run):
            del self._runs[start.run_id]
        return real(self, connection, start, now_s)

    return [(agent_core.Agent, "_start", again)]


@bug("no epoch is checked", "8", 1582)
def _() -> Sequence[Patch]:
    real = agent_core.Agent._obey

    def obey(self: Any, connection: int, command: Any, now_s: float) -> Any:
        self._highest_epoch = 0
        return real(self, connection, command, now_s)

    return [(agent_core.Agent, "_obey", obey)]


@bug("a report is acknowledged before the end is on record", "9", 110)
def _() -> Sequence[Patch]:
    return _before_the_end(lambda action: isinstance(action, Send) and isinstance(action.command, Ack))


@bug("the report of another run is believed", "4", 5)
def _() -> Sequence[Patch]:
    def whatever(self: Any, pod_uid: str, run_id: str) -> Any:
        reports = (r for c in self._connections.values() for r in c.reports.values())
        return next((r for r in reports if r.report.result is not None), None)

    return [(agents.Agents, "report", whatever)]


@bug("a claim that a list brings wakes nobody", "5", 2)
def _() -> Sequence[Patch]:
    real = world.World.relist

    async def silent(self: Any) -> None:
        wake, self._wake = self._wake, lambda key: None if key[0] == "task" else wake(key)
        try:
            await real(self)
        finally:
            self._wake = wake

    return [(world.World, "relist", silent)]


@bug("what a watch has missed is never looked for", "5", 147)
def _() -> Sequence[Patch]:
    return [(store.Shelf, "gone", lambda self, present, list_version: [])]


@bug("words are sent before Hello", "our own error", 0)
def _() -> Sequence[Patch]:
    def to_all(self: Any, message: Any) -> None:
        for number in list(self._connections):
            self.send(number, message)

    return [(server.Server, "send_to_all", to_all)]


# ---- approvals, and the queue


@bug("a plan is applied that nobody has approved", "approval", 7)
def _() -> Sequence[Patch]:
    return [(model.Task, "awaits_approval", property(lambda self: False))]


@bug("the time in the queue is over for a plan that waits", "7", 22)
def _() -> Sequence[Patch]:
    def until(task: model.Task) -> float | None:
        timeout_s = task.spec.queue_timeout_seconds
        return None if timeout_s is None else task.created_at + timeout_s

    return [(queue, "waits_until", until)]


@bug("an apply is ended for a newer task", "7", 10110)
def _() -> Sequence[Patch]:
    real = events.CancelRequested
    return [(agent_core, "CancelRequested", lambda *args, **rest: real(*args, **{**rest, "spares_apply": False}))]


@bug("an ended task is deleted before its time", "7", 0)
def _() -> Sequence[Patch]:
    real = decide.task_has_ended

    def at_once(s: Snapshot, now: float) -> Decision | None:
        decision = real(s, now)
        return decision if decision is None or decision.wake_after_s is None else Decision((DeleteTask(s.task),))

    return _policy("task_has_ended", at_once)


@bug(
    "one of two claims of an agent is forgotten with the other",
    "2",
    16775,
    "2: an agent has two claims, and the one that is released is not the one of its run",
)
def _() -> Sequence[Patch]:
    real = store.Claims._forget

    def forget(self: Any, claim: Any) -> None:
        real(self, claim)
        self.by_pod.pop(claim.pod_uid, None)

    return [(store.Claims, "_forget", forget)]


# ---- what agents are told, and what is left behind


@bug("half of the waiting tasks end as refused by an agent", "7", 0)
def _() -> Sequence[Patch]:
    waits = decide.task_waits_in_the_queue

    def refused(s: Snapshot, now: float) -> Decision | None:
        if s.claim is not None or s.queueing is None or not int(s.task.uid[-1]) % 2:
            return waits(s, now)
        return Decision((WriteStatus(s.task, status.ended_unstarted(s, model.FAILED, "AgentRefused", "", now)),))

    return _policy("task_waits_in_the_queue", refused)


@bug("no end is acknowledged", "9", 0)
def _() -> Sequence[Patch]:
    real = decide._after_the_end
    return [(decide, "_after_the_end", lambda *args: tuple(a for a in real(*args) if not isinstance(a, Send)))]


@bug("Force is sent as Graceful", "5", 15)
def _() -> Sequence[Patch]:
    real = commands.cancel

    def gentle(s: Snapshot, run_id: str, *, is_hurried: bool = False) -> Cancel:
        return replace(real(s, run_id), mode=CancelMode.FORCE if is_hurried else CancelMode.GRACEFUL)

    return [(commands, "cancel", gentle)]


@bug("no run is hurried whose pod is about to be killed", "5", 70)
def _() -> Sequence[Patch]:
    return [(fit, "hurry_at", lambda agent, received: None)]


@bug("maxAgents is not kept", "pool", 0)
def _() -> Sequence[Patch]:
    real = schedule._missing
    return [(schedule, "_missing", lambda *args, alive, **rest: real(*args, alive=0, **rest))]


@bug("the traces of a deleted pool stay", "5", 5)
def _() -> Sequence[Patch]:
    return [(effects.Effects, "remove_traces", mock.AsyncMock())]


@bug("agents keep their finalizers", "5", 0)
def _() -> Sequence[Patch]:
    return [(effects.Effects, "_without_finalizer", lambda self, agent: {})]


def first_seed(bug: Bug) -> tuple[int | None, str]:
    """The first seed that finds it, and what the judge says there."""
    with quietly(), planted(bug):
        for seed in range(WITHIN_SEEDS):
            if (history := found_by(bug, seed)) is not None:
                return seed, history.violation
        if bug.story and (history := found_by_story(bug)) is not None:
            return bug.seed, f"{history.violation} (by its recorded history, and by no seed below {WITHIN_SEEDS} now)"
    return None, "NOT FOUND"


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.simulation.bugs", description=__doc__.splitlines()[0])
    arguments.add_argument("--only", default="", help="those whose name holds these words")
    chosen = arguments.parse_args(words)
    missed = 0
    for each in BUGS:
        if chosen.only in each.what:
            seed, said = first_seed(each)
            missed += seed is None
            print(f"{'-' if seed is None else seed:>6}  {each.what}: {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
