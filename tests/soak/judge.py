"""Whether a round of random troubles left every invariant whole, by what was seen from outside.

Each violation is a text with the whole story of its task. What may have become of a task follows from
what was done to it: only what was killed, and what came after that on its workspace, may have failed.
Called by `test_random_troubles` once everything has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby

from tests.e2e import evidence
from tests.e2e.tasks import RunningTask
from tests.soak.plan import Trouble
from tests.soak.troubles import ENDED_WITHIN_S, Life, Round

KILLING = {
    Trouble.FORCE_DELETE_POD, Trouble.KILL_AGENT, Trouble.KILL_POD, Trouble.KILL_TERRAFORM, Trouble.KILL_PROVIDER,
    # What it had asked of the API server may have timed out meanwhile.
    Trouble.PAUSE,
}  # fmt: skip
ENDING = {
    Trouble.CANCEL, Trouble.CANCEL_TWICE, Trouble.FORCE, Trouble.SHORTEN, Trouble.DELETE, Trouble.RECREATE,
    Trouble.DELETE_POD, Trouble.EVICT, Trouble.DRAIN,
}  # fmt: skip


def violations(round_: Round) -> list[str]:
    found: list[str] = []

    def check(assertion: Callable[[], None]) -> None:
        try:
            assertion()
        except AssertionError as problem:
            found.append(str(problem))

    for life in round_.lives:
        check(partial(_judge, life, round_))
    by_workspace = sorted(round_.lives, key=lambda life: life.task.workspace)
    for _, lives in groupby(by_workspace, key=lambda life: life.task.workspace):
        tasks = [life.task for life in lives]
        check(partial(evidence.assert_one_at_a_time, tasks))
    return found


def _judge(life: Life, round_: Round) -> None:
    task = life.task
    if any("deletionTimestamp" in s.object["metadata"] for s in task.history):
        task.until_gone(ENDED_WITHIN_S)
    if task.end is None:
        assert not task.run_id, f"it went without an end\n{task.story()}"
        return
    left_locks = _locks_left_before(life, round_)
    evidence.assert_over(task, left_locks=left_locks, could_look=could_look(life, round_))
    evidence.assert_ended_once(task)
    judge_outcome(life, round_)
    if life.planned.shape.kind == "counted":
        times = evidence.executions(task, life.counter)
        at_most = 1 if task.run_id else 0
        assert times <= at_most, f"executed {times} times\n{task.story()}"
        assert times == 1 or task.phase != "Succeeded", f"it succeeded and was not executed\n{task.story()}"


def could_look(life: Life, round_: Round) -> bool:
    """Its agent was on no node that was frozen."""
    frozen = {step.node for step in round_.done if step.trouble is Trouble.PAUSE}
    pods = round_.installation.timeline.history("pods", life.task.namespace, life.task.pod_name)
    return not any(pod.object["spec"].get("nodeName") in frozen for pod in pods)


def _locks_left_before(life: Life, round_: Round) -> set[str]:
    """A killed run leaves its lock to whoever comes next, until somebody takes it away."""
    task = life.task
    assert task.end is not None
    before = [other.task for other in round_.lives if other.task.workspace == task.workspace]
    results = [t.status.get("result", {}) for t in before if t.end and t.end.version < task.end.version]
    return {str(result["lockID"]) for result in results if result.get("lock") == "Held"}


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
        allowed = {"Succeeded", "Cancelled"} if hits & ENDING else {"Succeeded"}
    assert phase in allowed, f"{phase} after {sorted(hit.name for hit in hits)}\n{task.story()}"
    if _was_cancelled_in_time(task) and phase == "Succeeded":
        assert task.condition("CancelRequested").get("reason") == "TooLate", task.story()


def _was_cancelled_in_time(task: RunningTask) -> bool:
    assert task.end is not None
    return task.cancel_seen is not None and task.cancel_seen.version < task.end.version
