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

import msgspec
from msgspec.structs import replace

from terrahalt_operator.core import commands, fit, model, queue, status
from terrahalt_operator.core.actions import (
    Decision,
    DeleteAgent,
    DeleteTask,
    KeepLog,
    ReadStateLock,
    ReleaseClaim,
    RemoveTaskFinalizer,
    ReserveAgent,
    Send,
    StampTask,
    TaskAction,
    WriteStatus,
)
from terrahalt_operator.core.model import Claim, Queueing, Snapshot, TaskStatus
from terrahalt_protocol.messages import SUPERSEDED, Ack, Outcome, RefusalCode, Result

PROGRESS_INTERVAL_S = 2.0
"""A status that differs only in progress is written at most this often."""
PROGRESS_WRITES_A_SECOND = 50.0
"""Of all tasks together: of more than a hundred runs each one's is written less often."""
QUEUE_INTERVAL_S = 10.0
"""The same for the position of a task that waits. What it waits for is told as soon as progress is."""

Policy = Callable[[Snapshot, float], Decision | None]


def decide(snapshot: Snapshot, now: float) -> Decision:
    """The actions for one task, in the order in which they are to be carried out."""
    for policy in POLICIES:
        decision = policy(snapshot, now)
        if decision is not None:
            return decision
    return Decision()


def task_has_ended(s: Snapshot, now: float) -> Decision | None:
    """Terminal: clean up what a crash may have left, follow the generation, and go when its time has come."""
    if not s.task.status.is_terminal:
        return None
    actions = [*_after_the_end(s, s.task.status)]
    if s.task.is_deleting:
        if s.task.has_finalizer:
            actions.append(RemoveTaskFinalizer(s.task))
    elif s.task.status.observed_generation != s.task.generation:
        actions.append(WriteStatus(s.task, status.observed(s.task, now)))
    elif s.task.spec.ttl_seconds_after_finished is not None and s.task.status.finished_at:
        wait_s = status.seconds(s.task.status.finished_at) + s.task.spec.ttl_seconds_after_finished - now
        if wait_s > 0:
            return Decision(tuple(actions), wake_after_s=wait_s)
        actions.append(DeleteTask(s.task))
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


def plan_is_on_record(s: Snapshot, now: float) -> Decision | None:
    """A crash left the claim of the run that made it. That run has ended, the workspace is free meanwhile."""
    kept = s.task.kept_plan
    if s.claim is None or kept is None or s.claim.run_id != kept.run_id:
        return None
    return Decision(_after_the_end(s, s.task.status), wake_after_s=0.0)


def another_run_is_on_record(s: Snapshot, now: float) -> Decision | None:
    """The claim that is known was released since by whoever leads, who has given the task away anew: nothing follows
    from it. The next list has the claim of that run."""
    if s.claim is None or s.task.status.run_id in ("", s.claim.run_id):
        return None
    return Decision()


def task_was_cancelled_in_the_queue(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None or not s.task.spec.cancel:
        return None
    message = "cancelled before it was given to an agent; nothing ran"
    if s.task.kept_plan is not None:
        message = "cancelled before its plan was applied; nothing was changed"
    ended = status.ended_unstarted(s, model.CANCELLED, "CancelledByUser", message, now)
    return Decision((WriteStatus(s.task, ended),))


def task_does_not_fit_its_pool(s: Snapshot, now: float) -> Decision | None:
    """Before it is claimed: what has begun in a pod that is too short can't be put right any more."""
    if s.claim is not None or s.pool_grace_s is None or not (misfit := fit.misfit(s.task.spec, s.pool_grace_s)):
        return None
    ended = status.ended_unstarted(s, model.FAILED, model.INVALID_BUDGET, misfit, now)
    return Decision((WriteStatus(s.task, ended),))


def task_was_superseded_in_the_queue(s: Snapshot, now: float) -> Decision | None:
    """Or while a person decides about its plan, or after that: no apply has begun."""
    if s.claim is not None or not s.superseded_by:
        return None
    so_far = "it had not been given to an agent, and nothing ran"
    if s.task.kept_plan is not None:
        so_far = "its plan was not applied, and nothing was changed"
    message = f"task {s.superseded_by} takes its place; {so_far}"
    ended = status.ended_unstarted(s, model.CANCELLED, SUPERSEDED, message, now, superseded_by=s.superseded_by)
    return Decision((WriteStatus(s.task, ended),))


def task_waited_too_long(s: Snapshot, now: float) -> Decision | None:
    until = queue.waits_until(s.task)
    if s.claim is not None or until is None or now < until:
        return None
    waited_for = f" for {s.task.status.queue.waiting_for}" if s.task.status.queue else ""
    message = f"waited in the queue for the {s.task.spec.queue_timeout_seconds} s of queueTimeoutSeconds{waited_for}"
    ended = status.ended_unstarted(s, model.FAILED, "QueueTimedOut", f"{message}; nothing ran", now)
    return Decision((WriteStatus(s.task, ended),))


def task_has_an_approval_that_its_pool_refuses(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None or s.allowed_approval is None:
        return None
    if not (refused := fit.refused_approval(s.task.spec, s.allowed_approval)):
        return None
    ended = status.ended_unstarted(s, model.FAILED, model.APPROVAL_NOT_ALLOWED, refused, now)
    return Decision((WriteStatus(s.task, ended),))


def plan_awaits_approval(s: Snapshot, now: float) -> Decision | None:
    """With a claim that came late, by who leads no more, nothing is started either. It is not released: it may as well
    be of the run that applies, and what is known of the task older than its approval."""
    if not s.task.awaits_approval or (s.claim is not None and (s.task.wants_cancel or _was_begun(s, s.claim))):
        return None
    left_s = status.approval_ends_at(s.task) - now
    if left_s <= 0:
        message = f"nobody approved its plan for {s.task.spec.approval_timeout_seconds} s; nothing was changed"
        ended = status.ended_unstarted(s, model.FAILED, "ApprovalTimedOut", message, now)
        return _end(s, ended)
    decision = _write(s, status.awaiting_approval(s.task, now), now, 0.0)
    return replace(decision, wake_after_s=left_s)


def approved_plan_has_expired(s: Snapshot, now: float) -> Decision | None:
    """It was not given to an agent, and never will be: nothing is applied but the very plan."""
    if s.claim is not None or s.queueing is None or not s.queueing.expired:
        return None
    message = f"{s.queueing.expired}; nothing was changed: plan anew, by a new task"
    ended = status.ended_unstarted(s, model.FAILED, "PlanExpired", message, now)
    return Decision((WriteStatus(s.task, ended),))


def task_waits_in_the_queue(s: Snapshot, now: float) -> Decision | None:
    if s.claim is not None:
        return None
    decision = Decision()
    if s.queueing is not None:
        told = s.task.status.queue.waiting_for if s.task.status.queue else ""
        interval_s = QUEUE_INTERVAL_S if told == s.queueing.waiting_for else PROGRESS_INTERVAL_S
        decision = _write(s, status.queued(s.task, s.queueing, now), now, interval_s)
    until = queue.waits_until(s.task)
    return decision if until is None else _woken_at(decision, until, now)


def run_reported_its_end(s: Snapshot, now: float) -> Decision | None:
    """The report comes after the sweep: nothing of the run is alive. The true result wins (invariant 4)."""
    if s.claim is None or s.report is None or s.report.report.result is None:
        return None
    result = s.report.report.result
    if not result.log_kept and s.report.report.started_s is not None and (keeping := _keeps_log(s, s.claim)):
        return Decision(keeping)
    # A task has one plan: whatever an apply says that it has kept, nobody will approve.
    plan = result.kept_plan if s.task.kept_plan is None else None
    if plan is not None and (s.task.wants_cancel or _asked_for_by(s)):
        result = _never_approved(s, result)
    elif plan is not None:
        return _end(s, status.plan_kept(s, s.report, plan, now))
    return _end(s, status.finished(s, s.report, result, now))


def agent_went_before_it_was_given_the_run(s: Snapshot, now: float) -> Decision | None:
    """Deleted, or dead, between claim and Assigned: nothing was started, and the task waits for another agent. The
    write comes first, because whoever else knows the claim may be about to write Assigned: that is refused then, and
    decided anew, it meets a pod that goes."""
    if s.claim is None or s.task.status.run_id or _was_begun(s, s.claim):
        return None
    if not s.agent_is_gone and (s.agent is None or not (s.agent.is_deleting or s.agent.is_over)):
        return None
    waits_for = f"another agent: {s.claim.pod_name} was gone before it was given the run"
    new = status.queued(s.task, Queueing(position=None, waiting_for=waits_for), now)
    written = () if new == s.task.status else (WriteStatus(s.task, new),)
    return Decision((*written, ReleaseClaim(s.claim)))


def agent_ended_without_a_report(s: Snapshot, now: float) -> Decision | None:
    """Evidence is `state.terminated` of the container that was recorded, as far as `adapters.objects` believes it."""
    if s.claim is None or s.agent is None or s.agent.ended is None:
        return None
    if s.agent.ended.container_id != s.claim.container_id:
        return None
    if s.state_lock is None:
        return Decision((*_keeps_log(s, s.claim), ReadStateLock(s.task)))
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
    """Cancel it, or say where it is and start it. A cancel goes out before it is written down: it is in `spec`. Then,
    before a run is on record, its pod is reserved. After the record goes a cancel for a newer task, and a start: who
    leads no more may hold a claim for a task that has ended meanwhile, and only the write, which is refused if the task
    has changed, tells. Without its pool, whose credentials nobody knows then, nothing is started. The end of its pod an
    agent sees by itself, but not how soon: that it is told."""
    if s.claim is None:
        return None
    claim, session = s.claim, s.session
    actions: list[TaskAction] = []
    following: tuple[TaskAction, ...] = ()
    hurry_at = fit.hurry_at(s.agent, s.report) if session is not None and claim.run_id in session.runs else None
    is_hurried = hurry_at is not None and now >= hurry_at
    newer = "" if s.task.wants_cancel or is_hurried else _makes_way_for(s)
    if session is not None:
        is_to_come = claim.run_id not in session.runs and session.sent_start != claim.run_id
        if s.task.wants_cancel or is_hurried:
            actions += _cancel(s, claim, is_hurried=is_hurried)
        elif newer and session.sent_cancel != (cancel := commands.supersede(s, claim.run_id, newer)):
            following = (Send(claim.pod_uid, cancel),)
        elif not newer and is_to_come and session.mismatch is None and s.pool_env_from is not None:
            following = (Send(claim.pod_uid, commands.start(s, claim.run_id)),)
    if s.task.status.run_id != claim.run_id:
        actions.append(ReserveAgent(claim))
    cancel_sent = s.task.wants_cancel and session is not None
    new = status.running(s, claim, now, cancel_sent=cancel_sent, superseded_by=newer)
    decision = _write(s, new, now, max(PROGRESS_INTERVAL_S, s.runs / PROGRESS_WRITES_A_SECOND), actions)
    decision = replace(decision, actions=(*decision.actions, *following))
    return decision if hurry_at is None or is_hurried else _woken_at(decision, hurry_at, now)


POLICIES: tuple[Policy, ...] = (
    task_has_ended,
    task_is_a_restored_copy,
    task_was_deleted_before_it_was_claimed,
    task_has_no_stamp,
    plan_is_on_record,
    another_run_is_on_record,
    task_was_cancelled_in_the_queue,
    task_does_not_fit_its_pool,
    task_has_an_approval_that_its_pool_refuses,
    task_was_superseded_in_the_queue,
    task_waited_too_long,
    plan_awaits_approval,
    approved_plan_has_expired,
    task_waits_in_the_queue,
    run_reported_its_end,
    agent_went_before_it_was_given_the_run,
    agent_ended_without_a_report,
    agent_refused_the_run,
    task_was_abandoned,
    run_is_under_way,
)


def _never_approved(s: Snapshot, result: Result) -> Result:
    """The cancel came when the run had its plan already."""
    reason = "CancelledByUser" if s.task.spec.cancel else "CancelledByDeletion"
    if not s.task.wants_cancel:
        reason = SUPERSEDED
    message = "cancelled before its plan was approved; nothing was changed"
    return msgspec.structs.replace(result, outcome=Outcome.CANCELLED, reason=reason, message=message)


def _was_begun(s: Snapshot, claim: Claim) -> bool:
    return s.report is not None or (s.session is not None and claim.run_id in s.session.runs)


def _cancel(s: Snapshot, claim: Claim, *, is_hurried: bool = False) -> tuple[TaskAction, ...]:
    """Once on each connection, and again where it has become more urgent."""
    if s.session is None:
        return ()
    cancel = commands.cancel(s, claim.run_id, is_hurried=is_hurried)
    return () if s.session.sent_cancel == cancel else (Send(claim.pod_uid, cancel),)


def _makes_way_for(s: Snapshot) -> str:
    """The newer task that is to take this run's place; empty: none, or the run applies, or ends already, or its agent
    would end an apply for it too. What was asked for once is asked for on: the newer task may be gone since."""
    told = s.report.report.cancel if s.report else None
    if s.session is None or not s.session.hello.spares_apply or status.is_spared(s.task, s.report):
        return ""
    if told is not None and told.cause != SUPERSEDED:
        return ""
    return _asked_for_by(s) or s.superseded_by


def _asked_for_by(s: Snapshot) -> str:
    """The newer task for which this one was asked to make way, on record; empty: none."""
    return s.task.status.cancel.superseded_by if s.task.status.cancel else ""


def _end(s: Snapshot, ended: TaskStatus, before: Sequence[TaskAction] = ()) -> Decision:
    return Decision((*before, WriteStatus(s.task, ended), *_after_the_end(s, ended)))


def _after_the_end(s: Snapshot, ended: TaskStatus) -> tuple[TaskAction, ...]:
    """Only after the end of the run is on record: the agent may forget, the workspace is free."""
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


def _keeps_log(s: Snapshot, claim: Claim) -> tuple[TaskAction, ...]:
    """Where the agent could not, while its pod is there. With a task that is being deleted its log would go at once."""
    has_ended = s.agent is not None and s.agent.ended is not None and s.agent.ended.container_id == claim.container_id
    return (KeepLog(s.task, claim),) if has_ended and s.log_kept is None and not s.task.is_deleting else ()


def _write(s: Snapshot, new: TaskStatus, now: float, interval_s: float, before: Sequence[TaskAction] = ()) -> Decision:
    if new == s.task.status:
        return Decision(tuple(before))
    wait_s = s.last_status_write_at + interval_s - now
    if not before and wait_s > 0 and status.differs_only_in_progress(s.task.status, new):
        return Decision(wake_after_s=wait_s)
    return Decision((*before, WriteStatus(s.task, new)))


def _woken_at(decision: Decision, moment: float, now: float) -> Decision:
    """Or before, if it says so."""
    waits_s = (moment - now, decision.wake_after_s)
    return replace(decision, wake_after_s=min(wait_s for wait_s in waits_s if wait_s is not None))
