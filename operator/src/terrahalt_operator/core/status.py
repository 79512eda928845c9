"""The status of a task, computed whole from what is known; never patched piece by piece.

Must never turn a terminal status into anything else, nor move a time that was once written. Called by
`decide`; others take its words and times only. Words that people read (`message`, reasons) are chosen here
and nowhere else. It has more than 500 lines because each of them is in one place.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from terrahalt_operator.core import model, names
from terrahalt_operator.core.identity import label_value
from terrahalt_operator.core.model import (
    AgentStatus,
    CancelStatus,
    Claim,
    Condition,
    LogStatus,
    OutputsStatus,
    PlanStatus,
    ProgressStatus,
    QueueStatus,
    ReceivedReport,
    ResultStatus,
    Snapshot,
    SourceStatus,
    StateLock,
    Task,
    TaskStatus,
)
from terrahalt_protocol import kept_log, state_lock
from terrahalt_protocol.backends import KUBERNETES, unlock_command
from terrahalt_protocol.messages import (
    SUPERSEDED,
    Action,
    CancelReason,
    KeptPlan,
    LockCondition,
    Outcome,
    PublishedOutputs,
    Report,
    Result,
    Rung,
    StateCondition,
    Step,
)

_PHASE_OF_STEP = {
    Step.PREPARE: model.PREPARING,
    Step.INIT: model.PREPARING,
    Step.PLAN: model.PLANNING,
    Step.APPLY: model.APPLYING,
}

MAX_MESSAGE_CHARS = 4_096
MAX_REASON_CHARS = 1_024
"""What agents tell is cut to fit: a status that the API server refuses would keep the task for ever."""

MAX_COMMIT_CHARS = 64
"""SHA-256 in hex, the longest name that git gives a commit."""

AGENT_LOST = "AgentLost"
"""The reason of a run whose container ended without a report."""

_REFUSALS = frozenset({"RestoredCopy", model.INVALID_BUDGET, model.APPROVAL_NOT_ALLOWED})
"""Reasons of tasks that were not accepted at all."""

_AFTER_THE_PLAN = model.TERMINAL | {model.APPLYING}

MAX_DIGEST_CHARS = 71
"""`sha256:` and 64 digits."""

_AGENT_STAGES = ("signalled_at", "exited_at", "swept_at")
_STAGES = ("sent_at", *_AGENT_STAGES)


@lru_cache(maxsize=1024)
def timestamp(seconds: float) -> str:
    """RFC 3339 with microseconds, UTC: fixed width, so that times compare as text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@lru_cache(maxsize=1024)
def seconds(timestamp: str) -> float:
    """RFC 3339 to seconds since the epoch."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def queued(task: Task, queueing: model.Queueing, now: float) -> TaskStatus:
    status = msgspec.structs.replace(
        task.status,
        phase=model.QUEUED,
        observed_generation=task.generation,
        message=f"waiting for {queueing.waiting_for}",
        queue=QueueStatus(position=queueing.position, waiting_for=queueing.waiting_for),
    )
    return _with_conditions(task, status, now)


def running(snapshot: Snapshot, claim: Claim, now: float, *, cancel_sent: bool, superseded_by: str = "") -> TaskStatus:
    """The status of a task whose run was given to an agent and has not been seen to end."""
    task, received = snapshot.task, snapshot.report
    report = received.report if received else None
    status = msgspec.structs.replace(
        task.status,
        phase=_phase(task, report),
        observed_generation=task.generation,
        queue=None,
        agent=_agent(task, claim, report),
        run_id=claim.run_id,
        cancel=_cancel(task, received, now, sent=cancel_sent, superseded_by=superseded_by),
    )
    if received:
        status = _with_report(task, status, received)
    message = _running_message(snapshot, claim, status)
    status = msgspec.structs.replace(status, message=message[:MAX_MESSAGE_CHARS])
    return _with_conditions(task, status, now)


def plan_kept(snapshot: Snapshot, received: ReceivedReport, plan: KeptPlan, now: float) -> TaskStatus:
    """The run has ended with its plan: the task has no agent and no run until somebody approves it."""
    status = _with_report(snapshot.task, snapshot.task.status, received)
    counts = status.plan or PlanStatus(add=0, change=0, destroy=0)
    kept = msgspec.structs.replace(
        counts,
        digest=plan.digest[:MAX_DIGEST_CHARS],
        ready_at=max(timestamp(now), status.started_at),
        run_id=received.report.run_id,
        image=snapshot.agent.image if snapshot.agent else "",
        architecture=plan.architecture[:MAX_REASON_CHARS],
    )
    log = _log(
        snapshot, received.report.run_id, is_kept=received.report.result is not None and received.report.result.log_kept
    )
    status = msgspec.structs.replace(status, plan=kept, agent=None, run_id="", progress=None, log=log)
    return awaiting_approval(msgspec.structs.replace(snapshot.task, status=status), now)


def awaiting_approval(task: Task, now: float) -> TaskStatus:
    kept = task.kept_plan
    assert kept is not None
    patch = msgspec.json.encode({"spec": {"approvedPlanDigest": kept.digest}}).decode()
    message = (
        f"{_plan_message(task.status)}; read the plan with `kubectl -n {task.namespace} logs --tail=-1 -l "
        f"{names.LAST_TASK_LABEL}={label_value(task.name)}` and approve it until "
        f"{timestamp(approval_ends_at(task))} with `kubectl -n {task.namespace} patch terraformtask {task.name} "
        f"--type merge -p '{patch}'`, or cancel the task"
    )
    status = msgspec.structs.replace(
        task.status,
        phase=model.AWAITING_APPROVAL,
        observed_generation=task.generation,
        queue=None,
        message=message[:MAX_MESSAGE_CHARS],
    )
    return _with_conditions(task, status, now)


def approval_ends_at(task: Task) -> float:
    """When a plan that nobody has approved is given up."""
    assert task.kept_plan is not None
    return seconds(task.kept_plan.ready_at) + task.spec.approval_timeout_seconds


def finished(snapshot: Snapshot, received: ReceivedReport, result: Result, now: float) -> TaskStatus:
    """The terminal status that a run's own report tells."""
    task = snapshot.task
    cancel = _cancel(task, received, now, sent=False)
    if cancel and result.outcome is Outcome.CANCELLED and not cancel.rung:
        cancel = msgspec.structs.replace(cancel, rung=Rung.NOT_STARTED.value)  # the run had its plan, and ended unasked
    status = msgspec.structs.replace(
        _with_report(task, task.status, received),
        phase=result.outcome.value,
        cancel=cancel,
        outputs=_outputs(result.outputs) if result.outputs else None,
        log=_log(snapshot, received.report.run_id, is_kept=result.log_kept),
        result=ResultStatus(
            reason=result.reason,
            state=result.state.value,
            lock=result.lock.condition.value,
            exit_code=result.exit_code,
            forced=result.forced,
            lock_id=result.lock.id,
            lock_command=result.lock.command,
            open_addresses=result.open_addresses[:50],
            open_address_count=result.open_address_count,
        ),
    )
    return _terminal(task, status, snapshot.claim, result.message, now, received.report)


def lost(snapshot: Snapshot, claim: Claim, lock: StateLock, how: str, now: float) -> TaskStatus:
    """The agent's container ended without a report that can be believed."""
    task = snapshot.task
    if not lock.is_readable:
        condition = LockCondition.UNKNOWN
    else:
        condition = LockCondition.HELD if lock.holder else LockCondition.RELEASED
    status = msgspec.structs.replace(
        task.status,
        phase=model.FAILED,
        cancel=_cancel(task, snapshot.report, now, sent=False),
        log=_log(snapshot, claim.run_id),
        result=ResultStatus(
            reason=AGENT_LOST,
            state=StateCondition.UNKNOWN.value,
            lock=condition.value,
            lock_id=lock.holder,
            lock_command=_lock_command(task, claim, lock),
        ),
    )
    message = (
        f"agent pod {claim.pod_name} ended without a report ({how}); its run was killed with it, "
        "so run a Plan next to see what it left"
    )
    return _terminal(task, status, claim, message, now)


def abandoned(snapshot: Snapshot, claim: Claim, now: float) -> TaskStatus:
    """Given up by a person, with no sign of the run's end: what is not known is said to be so."""
    task = snapshot.task
    look = _look_at_lock(task)
    status = msgspec.structs.replace(
        task.status,
        phase=model.FAILED,
        cancel=_cancel(task, snapshot.report, now, sent=snapshot.session is not None),
        result=ResultStatus(
            reason=model.ABANDONED,
            state=StateCondition.UNKNOWN.value,
            lock=LockCondition.UNKNOWN.value,
            lock_command=look,
        ),
    )
    message = (
        f"given up without a sign that its run ended: it may still be at work in agent pod {claim.pod_name}, "
        f"on the state of workspace {task.spec.workspace}; see whether it is (kubectl -n {task.namespace} get pod "
        f"{claim.pod_name}) and who holds the state's lock ({look}), and run a Plan next"
    )
    return _terminal(task, status, claim, message, now)


def ended_unstarted(
    snapshot: Snapshot, phase: str, reason: str, message: str, now: float, *, superseded_by: str = ""
) -> TaskStatus:
    """A task that ends without any process of it ever having run."""
    task = snapshot.task
    cancel = _cancel(task, None, now, sent=False, superseded_by=superseded_by)
    if cancel and not cancel.rung:
        cancel = msgspec.structs.replace(cancel, rung=Rung.NOT_STARTED.value)
    status = msgspec.structs.replace(
        task.status,
        phase=phase,
        cancel=cancel,
        result=ResultStatus(reason=reason, state=StateCondition.COMPLETE.value, lock=LockCondition.RELEASED.value),
    )
    return _terminal(task, status, snapshot.claim, message, now)


def observed(task: Task, now: float) -> TaskStatus:
    """A terminal status for a spec that was changed after the end: kstatus compares the generation."""
    return _with_conditions(task, msgspec.structs.replace(task.status, observed_generation=task.generation), now)


def differs_only_in_progress(old: TaskStatus, new: TaskStatus) -> bool:
    """Whether a write can wait: nobody decides anything by what changed."""

    def without_progress(status: TaskStatus) -> TaskStatus:
        return msgspec.structs.replace(
            status, message="", progress=None, queue=None, source=None, plan=None, conditions=()
        )

    def states(status: TaskStatus) -> list[tuple[str, str, str]]:
        return [(c.type, c.status, c.reason) for c in status.conditions if c.type != "PlanReady"]

    return without_progress(old) == without_progress(new) and states(old) == states(new)


def _look_at_lock(task: Task) -> str:
    if task.spec.backend.type != KUBERNETES:
        return unlock_command(task.spec.backend.type, task.spec.workspace)
    return state_lock.look_command(task.namespace, task.spec.workspace)


def _lock_command(task: Task, claim: Claim, lock: StateLock) -> str:
    """Nothing of the run is alive: a lock that is its own may be released, and another's may not. An agent has one run,
    and its pod's name, which nobody chose, is the hostname that terraform writes into the lock."""
    if lock.is_readable and not lock.holder:
        return ""
    if lock.holder and lock.who.rpartition("@")[2] == claim.pod_name[:63].rstrip("-."):
        return state_lock.release_command(task.namespace, task.spec.workspace, lock.holder)
    return _look_at_lock(task)


def _agent(task: Task, claim: Claim, report: Report | None) -> AgentStatus:
    known = task.status.agent.boot_id if task.status.agent else ""
    return AgentStatus(
        pod_name=claim.pod_name,
        pod_uid=claim.pod_uid,
        container_id=claim.container_id,
        boot_id=report.boot_id if report else known,
    )


def _phase(task: Task, report: Report | None) -> str:
    if task.wants_cancel or (report and report.cancel):
        return model.CANCELLING
    waited = ("", model.QUEUED, model.AWAITING_APPROVAL)
    known = model.ASSIGNED if task.status.phase in waited else task.status.phase
    return _PHASE_OF_STEP.get(report.step, known) if report else known


def _with_report(task: Task, status: TaskStatus, received: ReceivedReport) -> TaskStatus:
    report = received.report
    task_applies = task.spec.action is not Action.PLAN
    planned = 0
    plan = status.plan
    if report.plan:
        counts = PlanStatus(add=report.plan.add, change=report.plan.change, destroy=report.plan.destroy)
        # What was kept and approved stays as it is, whatever its apply tells of it.
        plan = task.kept_plan or counts
        planned = plan.add + plan.change + plan.destroy
    progress = status.progress
    if task_applies and report.step in (Step.APPLY, Step.SWEEP) and planned:
        progress = ProgressStatus(
            done=report.resources_done,
            planned=planned,
            current=report.resources_current,
            summary=f"{report.resources_done}/{planned}",
        )
    started_at = status.started_at
    if not started_at and report.started_s is not None:
        started_at = timestamp(received.received_at - report.started_s)
    source = SourceStatus(commit=report.source_commit[:MAX_COMMIT_CHARS]) if report.source_commit else status.source
    return msgspec.structs.replace(status, source=source, plan=plan, progress=progress, started_at=started_at)


def is_spared(task: Task, received: ReceivedReport | None) -> bool:
    """Its apply began before a newer task could take its place, as far as is known."""
    if received is None:
        return task.status.phase == model.APPLYING
    return received.report.step in (Step.APPLY, Step.SWEEP) and received.report.cancel is None


def _cancel(
    task: Task, received: ReceivedReport | None, now: float, *, sent: bool, superseded_by: str = ""
) -> CancelStatus | None:
    """The stages of a cancel, each no earlier than the one before; a stage once written stays, unless it was of a
    newer task that came too late, and another cancel came after it."""
    told = received.report.cancel if received else None
    old = task.status.cancel
    if old is not None and old.superseded_by:
        sent |= told is not None
        is_another = told.cause != SUPERSEDED if told else task.wants_cancel and is_spared(task, received)
        old = None if is_another else old
    if old is None:
        if told and (told.cause or told.reason is not CancelReason.USER):
            by = told.cause or told.reason.value
        elif task.spec.cancel:
            by = CancelReason.USER.value
        elif task.is_deleting:
            by = CancelReason.DELETION.value
        elif told:
            by = told.reason.value
        elif superseded_by:
            by = SUPERSEDED
        else:
            return None
        asked_at = timestamp(now)
        if told and told.ages.received_s is not None and received:
            asked_at = min(asked_at, timestamp(received.received_at - told.ages.received_s))
        old = CancelStatus(by=by, superseded_by=superseded_by if by == SUPERSEDED else "", requested_at=asked_at)
    moments: dict[str, float | None] = {"sent_at": now if sent else None}
    if told and received:
        for name in _AGENT_STAGES:
            age_s: float | None = getattr(told.ages, name.replace("_at", "_s"))
            moments[name] = None if age_s is None else received.received_at - age_s
    stages: dict[str, str] = {}
    latest = old.requested_at
    for position, name in enumerate(_STAGES):
        written: str = getattr(old, name)
        moment = moments.get(name)
        # What another cause had begun already (a timeout, then a person) is not made up afterwards.
        if not written and moment is not None and not any(getattr(old, later) for later in _STAGES[position + 1 :]):
            written = max(latest, timestamp(moment))
        stages[name] = written
        latest = max(latest, written)
    return msgspec.structs.replace(old, rung=told.rung.value if told else old.rung, **stages)


def _running_message(snapshot: Snapshot, claim: Claim, status: TaskStatus) -> str:
    received = snapshot.report
    if snapshot.agent is None:
        return (
            f"agent pod {claim.pod_name} is gone from the API without a sign that its container ended; "
            "its node may still be at work on the run, so the workspace stays claimed; if it is gone for good, a "
            "cancel with cancelMode Abandon gives the run up"
        )
    if snapshot.session is None:
        text = f"waiting for the connection to agent pod {claim.pod_name}"
        # Whoever waits for the end of a run on a dead node would read this for ever.
        way_out = "; if its node is gone for good, a cancel with cancelMode Abandon gives the run up"
        return text + (way_out if snapshot.task.wants_cancel else "")
    if snapshot.session.mismatch and claim.run_id not in snapshot.session.runs and not snapshot.task.wants_cancel:
        return snapshot.session.mismatch
    report = received.report if received else None
    if snapshot.task.wants_cancel and not (report and report.cancel):
        return f"cancel sent to agent pod {claim.pod_name}"
    newer = status.cancel.superseded_by if status.cancel else ""
    if newer and not (report and report.cancel) and not is_spared(snapshot.task, received):
        return f"makes way for task {newer}, unless its apply has begun"
    if report and report.message:
        return report.message
    is_to_come = claim.run_id not in snapshot.session.runs and not snapshot.session.sent_start
    if is_to_come and snapshot.pool_env_from is None and not snapshot.task.wants_cancel:
        pool = snapshot.task.spec.pool_ref.name
        return f"waiting for pool {pool}, which was deleted: create it anew, or cancel the task"
    return f"given to agent pod {claim.pod_name}"


def _log(snapshot: Snapshot, run_id: str, *, is_kept: bool = False) -> LogStatus | None:
    """Of the task's last run that has one. `is_kept`: by its agent."""
    if is_kept or snapshot.log_kept:
        return LogStatus(secret_name=kept_log.name(run_id))
    return snapshot.task.status.log


def _outputs(told: PublishedOutputs) -> OutputsStatus:
    return OutputsStatus(
        secret_name=told.secret[:MAX_REASON_CHARS], count=told.count, problem=told.problem[:MAX_REASON_CHARS]
    )


def _terminal(
    task: Task, status: TaskStatus, claim: Claim | None, message: str, now: float, report: Report | None = None
) -> TaskStatus:
    if claim:
        status = msgspec.structs.replace(status, agent=_agent(task, claim, report), run_id=claim.run_id)
    status = msgspec.structs.replace(
        status,
        observed_generation=task.generation,
        queue=None,
        message=message[:MAX_MESSAGE_CHARS],
        finished_at=max(timestamp(now), status.cancel.swept_at if status.cancel else ""),
    )
    return _with_conditions(task, status, now)


def _with_conditions(task: Task, status: TaskStatus, now: float) -> TaskStatus:
    phase, terminal = status.phase, status.phase in model.TERMINAL
    reason = ((status.result.reason if terminal and status.result else "") or phase)[:MAX_REASON_CHARS]
    well = phase == Outcome.SUCCEEDED.value
    states: list[tuple[str, bool, str, str]] = [
        ("Reconciling", not terminal, reason, status.message),
        ("Stalled", terminal and not well, reason, status.message),
        ("Ready", well, reason, status.message),
        ("Finished", terminal, reason, status.message),
        ("Accepted", reason not in _REFUSALS, reason if reason in _REFUSALS else "Accepted", ""),
        ("Scheduled", bool(status.run_id), _scheduled_reason(status), _scheduled_message(status)),
        ("PlanReady", status.plan is not None, "Planned" if status.plan else "NotPlanned", _plan_message(status)),
    ]
    if status.cancel or task.spec.cancel:
        by = status.cancel.by if status.cancel else ""
        newer = status.cancel.superseded_by if status.cancel else ""
        # Its agent has not said that it ends for it.
        was_spared = bool(newer) and not (status.cancel and status.cancel.rung) and phase in _AFTER_THE_PLAN
        too_late = well or status.cancel is None or was_spared
        text = f"task {newer} takes its place" if newer else f"asked for by {by or CancelReason.USER.value}"
        if too_late:
            text += "; it came too late" if was_spared else "; the task had already ended"
        states.append(("CancelRequested", True, "TooLate" if too_late else by, text))
    if status.outputs is not None:
        why = "NotPublished" if status.outputs.problem else "Published"
        states.append(("OutputsPublished", not status.outputs.problem, why, status.outputs.problem))
    before = {c.type: c for c in task.status.conditions}
    conditions, since_now = [], timestamp(now)
    for kind, holds, why, text in states:
        value = "True" if holds else "False"
        old = before.get(kind)
        since = old.last_transition_time if old and old.status == value else since_now
        conditions.append(
            Condition(
                type=kind,
                status=value,
                reason=why,
                message=text,
                last_transition_time=since,
                observed_generation=task.generation,
            )
        )
    return msgspec.structs.replace(status, conditions=tuple(conditions))


def _scheduled_reason(status: TaskStatus) -> str:
    if status.run_id:
        return "Assigned"
    return model.AWAITING_APPROVAL if status.phase == model.AWAITING_APPROVAL else "Queued"


def _scheduled_message(status: TaskStatus) -> str:
    if status.agent:
        return f"agent pod {status.agent.pod_name}"
    return f"waiting for {status.queue.waiting_for}" if status.queue else ""


def _plan_message(status: TaskStatus) -> str:
    if not status.plan:
        return ""
    return f"{status.plan.add} to add, {status.plan.change} to change, {status.plan.destroy} to destroy"
