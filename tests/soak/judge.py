"""Whether a round of random troubles left every invariant whole, by what was seen from outside.

Each violation is a text with the whole story of its task. What may have become of a task follows from
what was done to it: only what was killed, and what came after that on its workspace, may have failed.
Called by `test_random_troubles` and `test_chaos` once everything has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby

from tests.e2e import evidence
from tests.e2e.tasks import RunningTask, plan_run
from tests.soak.plan import OF_API, Trouble
from tests.soak.troubles import ENDED_WITHIN_S, Life, Round

KILLING = {
    Trouble.FORCE_DELETE_POD, Trouble.KILL_AGENT, Trouble.KILL_POD, Trouble.KILL_TERRAFORM, Trouble.KILL_PROVIDER,
    # What it had asked of the API server may have timed out meanwhile.
    Trouble.PAUSE, Trouble.STOP, *OF_API,
}  # fmt: skip
ENDING = {
    Trouble.CANCEL, Trouble.CANCEL_TWICE, Trouble.FORCE, Trouble.SHORTEN, Trouble.DELETE, Trouble.RECREATE,
    Trouble.DELETE_POD, Trouble.EVICT, Trouble.DRAIN,
}  # fmt: skip


SHAKEN = {Trouble.CUT_AGENT, Trouble.FREEZE_AGENT, *OF_API}
"""An agent may have had no answer, or too late, when it looked at its lock."""


def violations(round_: Round) -> list[str]:
    checks = [partial(_judge, life, round_) for life in round_.lives]
    by_workspace = sorted(round_.lives, key=lambda life: life.task.workspace)
    for _, lives in groupby(by_workspace, key=lambda life: life.task.workspace):
        checks.append(partial(evidence.assert_one_at_a_time, [run for life in lives for run in _runs(life)]))
    return collected(checks)


def collected(checks: Iterable[Callable[[], None]]) -> list[str]:
    """What those say that fail."""
    found = []
    for check in checks:
        try:
            check()
        except AssertionError as problem:
            found.append(str(problem))
    return found


def _runs(life: Life) -> list[RunningTask]:
    """Each as a task of its own."""
    task = life.task
    if not life.planned.needs_approval or not any(s.status.get("runID") for s in task.history):
        return [task]
    first = plan_run(task)
    return [first] if first.run_id == task.run_id else [first, task]


def _judge(life: Life, round_: Round) -> None:
    task = life.task
    if any("deletionTimestamp" in s.object["metadata"] for s in task.history):
        task.until_gone(ENDED_WITHIN_S)
    if task.end is None:
        # One that ended and went while nobody was told may have had one.
        was_told = not task.history or task.history[-1].is_dated
        assert not task.run_id or not was_told, f"it went without an end\n{task.story()}"
        return
    left_locks = locks_left_before(life, round_)
    evidence.assert_over(task, left_locks=left_locks, could_look=could_look(life, round_))
    evidence.assert_ended_once(task, runs_at_most=2 if life.planned.needs_approval else 1)
    judge_outcome(life, round_)
    if life.planned.shape.kind == "counted":
        times = evidence.executions(task, life.counter)
        at_most = 1 if task.run_id else 0
        assert times <= at_most, f"executed {times} times\n{task.story()}"
        assert times == 1 or task.phase != "Succeeded", f"it succeeded and was not executed\n{task.story()}"


def could_look(life: Life, round_: Round) -> bool:
    """Its agent was on no node that was frozen or has just started (until kube-proxy has written its rules there, the
    API server's address leads elsewhere), nor was it frozen itself, nor was there nobody to ask."""
    if SHAKEN & round_.hit_by(life.number):
        return False
    shaken = {step.node for step in round_.done if step.trouble in (Trouble.PAUSE, Trouble.STOP)}
    pods = round_.installation.timeline.history("pods", life.task.namespace, life.task.pod_name)
    return not any(pod.object["spec"].get("nodeName") in shaken for pod in pods)


def locks_left_before(life: Life, round_: Round) -> set[str]:
    """A killed run leaves its lock to whoever comes next, until somebody takes it away."""
    task = life.task
    assert task.end is not None
    before = [other.task for other in round_.lives if other.task.workspace == task.workspace]
    locks = {evidence.lock_left_by(t) for t in before if t.end and t.end.version < task.end.version}
    return locks - {""}


def judge_outcome(life: Life, round_: Round) -> None:
    task = life.task
    assert task.end is not None
    neighbours = {n for n, planned in enumerate(round_.plan.tasks) if planned.workspace == life.planned.workspace}
    # A lock or a half-written state that was left there is met by whoever comes next.
    if KILLING & {trouble for number in neighbours for trouble in round_.hit_by(number)}:
        return
    hits = round_.hit_by(life.number)
    phase = task.phase
    if not life.planned.shape.ends_by_itself:
        allowed = {"Cancelled"}
    else:
        allowed = {"Succeeded", "Cancelled"} if hits & ENDING or _made_way(life, round_) else {"Succeeded"}
    assert phase in allowed, f"{phase} after {sorted(hit.name for hit in hits)}\n{task.story()}"
    if _was_cancelled_in_time(task) and phase == "Succeeded":
        assert task.condition("CancelRequested").get("reason") == "TooLate", task.story()


def _made_way(life: Life, round_: Round) -> bool:
    """For a newer task of its workspace."""
    lives = {other.number for other in round_.lives}
    newer = [n for n, planned in enumerate(round_.plan.tasks) if planned.supersedes and n in lives - {life.number}]
    by_it = life.task.status.get("result", {}).get("reason") == "Superseded"
    return by_it and any(round_.plan.tasks[n].workspace == life.planned.workspace for n in newer)


def _was_cancelled_in_time(task: RunningTask) -> bool:
    assert task.end is not None
    return task.cancel_seen is not None and task.cancel_seen.version < task.end.version
