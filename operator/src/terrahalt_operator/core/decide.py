"""What to do about one task, from all that is known of it: the heart of the operator.

Level-triggered and pure: `decide(snapshot, now)` gives the right answer after a crash, a missed
event or a week of downtime, because it looks at what is, not at what happened. It must never write
a terminal phase without evidence that no process of the run is alive (invariant 1; the one exception
is `task_was_abandoned`), change a terminal phase (3), or start a run without its stamp and its claim
(2, 3). Called by `reconciler`.

The policies are asked in order; the first that has an answer decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from terrahalt_operator.core import commands, fit, model, status
from terrahalt_operator.core.actions import (
    Decision,
    DeleteAgent,
    LabelAgent,
    ReadStateLock,
    ReleaseClaim,
    RemoveTaskFinalizer,
    Send,
    StampTask,
    TaskAction,
    WriteStatus,
)
from terrahalt_operator.core.model import Claim, Snapshot, TaskStatus
from terrahalt_protocol.messages import Ack, RefusalCode

PROGRESS_INTERVAL_S = 2.0
"""A status that differs only in progress is written at most this often."""
QUEUE_INTERVAL_S = 10.0
"""The same for the position of a task that waits."""

Policy = Callable[[Snapshot, float], Decision | None]


def decide(snapshot: Snapshot, now: float) -> Decision:
    """The actions for one task, in the order in which they are to be carried out."""
    for policy in POLICIES:
        decision = policy(snapshot, now)
        if decision is not None:
            return decision
    return Decision()


def task_has_ended(s: Snapshot, now: float) -> Decision | None:
    """Terminal: clean up what a crash may have left, and follow the generation."""
    if not s.task.status.is_terminal:
        return None
    actions = [*_after_the_end(s, s.task.status)]
    if s.task.is_deleting:
        if s.task.has_finalizer:
            actions.append(RemoveTaskFinalizer(s.task))
    elif s.task.status.observed_generation != s.task.generation:
        actions.append(WriteStatus(s.task, status.observed(s.task, now)))
    return Decision(tuple(actions))


def task_is_a_restored_copy(s: Snapshot, now: float) -> Decision | None:
    """The stamp of another object: it may have run elsewhere, so it never runs here (invariant 3). With a claim
    it is no copy, but a task whose annotation somebody changed: no sign that its run has ended."""
    if s.claim is not None or not s.task.is_restored_copy:
        return None
    if s.task.is_deleting:
        return Decision((RemoveTaskFinalizer(s.task),) if s.task.has_finalizer else ())
    message = (
        f"this is a copy of the task with UID {s.task.stamp}, which may have run already; "
        "to run it again, create it without its annotations and under a new name"
    )
    return Decision((WriteStatus(s.task, status.ended_unstarted(s, model.FAILED, "RestoredCopy", message, now)),))


def task_was_deleted_before_it_was_claimed(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None or not s.task.is_deleting:
        return None
    return Decision((RemoveTaskFinalizer(s.task),) if s.task.has_finalizer else ())


def task_has_no_stamp(s: Snapshot, now: float) -> Decision | None:
    """A task that is being deleted takes no new finalizer: with a claim, it is wound down like any other."""
    if s.task.is_stamped or s.task.is_deleting:
        return None
    return Decision((StampTask(s.task),))


def task_was_cancelled_in_the_queue(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None or not s.task.spec.cancel:
        return None
    message = "cancelled before it was given to an agent; nothing ran"
    ended = status.ended_unstarted(s, model.CANCELLED, "CancelledByUser", message, now)
    return Decision((WriteStatus(s.task, ended),))


def task_does_not_fit_its_pool(s: Snapshot, now: float) -> Decision | None:
    """Before it is claimed: what has begun in a pod that is too short can't be put right any more."""
    if s.claim is not None or s.pool_grace_s is None or not (misfit := fit.misfit(s.task.spec, s.pool_grace_s)):
        return None
    ended = status.ended_unstarted(s, model.FAILED, model.INVALID_BUDGET, misfit, now)
    return Decision((WriteStatus(s.task, ended),))


def task_waits_in_the_queue(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None:
        return None
    if s.queueing is None:
        return Decision()
    return _write(s, status.queued(s.task, s.queueing, now), now, QUEUE_INTERVAL_S)


def run_reported_its_end(s: Snapshot, now: float) -> Decision | None:
    """The report comes after the sweep: nothing of the run is alive. The true result wins (invariant 4)."""
    if s.claim is None or s.report is None or s.report.report.result is None:
        return None
    ended = status.finished(s, s.report, s.report.report.result, now)
    return _end(s, ended)


def agent_ended_without_a_report(s: Snapshot, now: float) -> Decision | None:
    """Evidence is `state.terminated` of the very container that was recorded, never the pod's phase."""
    if s.claim is None or s.agent is None or s.agent.ended is None:
        return None
    if s.agent.ended.container_id != s.claim.container_id:
        return None
    if s.state_lock is None:
        return Decision((ReadStateLock(s.task),))
    how = f"{s.agent.ended.reason or 'Ended'}, exit code {s.agent.ended.exit_code}"
    ended = status.lost(s, s.claim, s.state_lock, how, now)
    return _end(s, ended)


def agent_refused_the_run(s: Snapshot, now: float) -> Decision | None:
    """It never held the run, so nothing of it can be alive there."""
    if s.claim is None or s.session is None or s.session.refused is None:
        return None
    refused = s.session.refused
    if refused.run_id != s.claim.run_id or s.claim.run_id in s.session.runs:
        return None
    if refused.code is RefusalCode.STALE_EPOCH:
        return None
    message = f"agent pod {s.claim.pod_name} refused the run: {refused.message}"
    ended = status.ended_unstarted(s, model.FAILED, "AgentRefused", message, now)
    return _end(s, ended)


def task_was_abandoned(s: Snapshot, now: float) -> Decision | None:
    """A person's word in place of evidence, where none of it has come. Nobody is believed dead for it: the
    agent is told to end the run, and its pod is deleted before the workspace is given away, so that it gets
    no other task and its kubelet ends what is still alive."""
    if s.claim is None or not s.task.is_given_up:
        return None
    ended = status.abandoned(s, s.claim, now)
    return _end(s, ended, _cancel(s, s.claim))


def run_is_under_way(s: Snapshot, now: float) -> Decision | None:
    """Cancel it, or say where it is and start it. A cancel goes out before it is written down: it is in `spec`. A start
    goes out after that: who leads no more may hold a claim for a task that has ended meanwhile, and only the write,
    which is refused if the task has changed, tells. The end of its pod an agent sees by itself, but not how soon: that
    it is told."""
    if s.claim is None:
        return None
    claim, session = s.claim, s.session
    actions: list[TaskAction] = []
    following: tuple[TaskAction, ...] = ()
    hurry_at = fit.hurry_at(s.agent, s.report) if session is not None and claim.run_id in session.runs else None
    is_hurried = hurry_at is not None and now >= hurry_at
    if session is not None:
        if s.task.wants_cancel or is_hurried:
            actions += _cancel(s, claim, is_hurried=is_hurried)
        elif claim.run_id not in session.runs and session.sent_start != claim.run_id and session.mismatch is None:
            following = _start(s, claim)
    cancel_sent = s.task.wants_cancel and session is not None
    new = status.running(s, claim, now, cancel_sent=cancel_sent)
    decision = _write(s, new, now, PROGRESS_INTERVAL_S, actions)
    decision = replace(decision, actions=(*decision.actions, *following))
    if hurry_at is None or is_hurried:
        return decision
    waits_s = (hurry_at - now, decision.wake_after_s)
    return replace(decision, wake_after_s=min(wait_s for wait_s in waits_s if wait_s is not None))


POLICIES: tuple[Policy, ...] = (
    task_has_ended,
    task_is_a_restored_copy,
    task_was_deleted_before_it_was_claimed,
    task_has_no_stamp,
    task_was_cancelled_in_the_queue,
    task_does_not_fit_its_pool,
    task_waits_in_the_queue,
    run_reported_its_end,
    agent_ended_without_a_report,
    agent_refused_the_run,
    task_was_abandoned,
    run_is_under_way,
)


def _start(s: Snapshot, claim: Claim) -> tuple[TaskAction, ...]:
    """The agent's pod is labelled before: who leads no more may be about to delete it, as one that nobody needs, and is
    refused where it has changed."""
    if s.agent is not None and s.agent.run_label != claim.run_id:
        return (LabelAgent(s.agent, claim),)
    return (Send(claim.pod_uid, commands.start(s, claim.run_id)),)


def _cancel(s: Snapshot, claim: Claim, *, is_hurried: bool = False) -> tuple[TaskAction, ...]:
    """Once on each connection, and again where it has become more urgent."""
    if s.session is None:
        return ()
    cancel = commands.cancel(s, claim.run_id, is_hurried=is_hurried)
    return () if s.session.sent_cancel == cancel else (Send(claim.pod_uid, cancel),)


def _end(s: Snapshot, ended: TaskStatus, before: Sequence[TaskAction] = ()) -> Decision:
    return Decision((*before, WriteStatus(s.task, ended), *_after_the_end(s, ended)))


def _after_the_end(s: Snapshot, ended: TaskStatus) -> tuple[TaskAction, ...]:
    """Only after the terminal phase is on record: the agent may forget, the workspace is free."""
    if s.claim is None:
        return ()
    actions: list[TaskAction] = []
    if ended.is_abandoned:
        if s.agent is not None and not s.agent.is_deleting:
            actions.append(DeleteAgent(s.agent))
    elif s.session is not None and s.claim.run_id in s.session.runs:
        actions.append(Send(s.claim.pod_uid, Ack(epoch=s.epoch, run_id=s.claim.run_id)))
    actions.append(ReleaseClaim(s.claim))
    return tuple(actions)


def _write(s: Snapshot, new: TaskStatus, now: float, interval_s: float, before: Sequence[TaskAction] = ()) -> Decision:
    if new == s.task.status:
        return Decision(tuple(before))
    wait_s = s.last_status_write_at + interval_s - now
    if not before and wait_s > 0 and status.differs_only_in_progress(s.task.status, new):
        return Decision(wake_after_s=wait_s)
    return Decision((*before, WriteStatus(s.task, new)))
