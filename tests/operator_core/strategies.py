"""Any snapshot of one task that the adapters could build, sensible or not."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from terrahalt_operator.core import model
from terrahalt_operator.core.model import ReceivedReport, Session, Snapshot, Task, TaskStatus
from terrahalt_protocol.messages import CancelMode, CancelReason, Outcome, RefusalCode, Rung, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, OTHER_RUN, RUN, UID

ages = st.none() | st.floats(0, 1e5)
rungs = st.sampled_from(list(Rung))


@st.composite
def reports(draw: st.DrawFn) -> ReceivedReport:
    """Of this run; with a cancel, a plan and a result or without, received lately or long ago."""
    kept = b.a_plan_report().report.result
    result = draw(st.none() | st.sampled_from([*(b.a_result(outcome) for outcome in Outcome), kept]))
    cancel = None
    if draw(st.booleans()):
        reason = draw(st.sampled_from(list(CancelReason)))
        told = {name: draw(ages) for name in ("received_s", "signalled_s", "exited_s", "swept_s")}
        cause = draw(st.sampled_from(["", "Superseded", "OutOfMemory"]))
        cancel = b.a_cancel_report(draw(rungs), cause=cause, reason=reason, **told)  # type: ignore[arg-type]
    return b.a_report(
        draw(st.sampled_from(list(Step))),
        received_at=NOW - draw(st.floats(0, 1e4)),
        started_s=draw(ages),
        message=draw(st.sampled_from(["", "terraform apply"])),
        plan=draw(st.sampled_from([None, b.a_plan])),
        resources_done=draw(st.integers(0, 4)),
        source_commit=draw(st.sampled_from(["", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"])),
        cancel=cancel,
        result=result,
    )


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    session = b.a_session(
        runs=frozenset(draw(st.sets(st.sampled_from([RUN, OTHER_RUN])))),
        is_used=draw(st.booleans()),
        sent_start=draw(st.sampled_from(["", RUN, OTHER_RUN])),
        sent_cancel=draw(st.sampled_from([None, b.a_cancel(), b.a_cancel(mode=CancelMode.FORCE), b.a_supersede()])),
        refused=draw(
            st.none() | st.builds(b.a_refusal, st.sampled_from(list(RefusalCode)), st.sampled_from([RUN, OTHER_RUN]))
        ),
        mismatch=draw(st.sampled_from([None, "another protocol"])),
    )
    hello = msgspec.structs.replace(session.hello, spares_apply=draw(st.booleans()))
    return replace(session, hello=hello)


def statuses(is_claimed: bool) -> st.SearchStrategy[TaskStatus]:
    fresh = st.sampled_from([TaskStatus(), TaskStatus(phase=model.QUEUED, observed_generation=1)])
    ends = [(phase, phase) for phase in sorted(model.TERMINAL)] + [(model.FAILED, model.ABANDONED)]
    ended = st.sampled_from([b.a_terminal_status(phase, reason) for phase, reason in ends])
    # The claim that is there may be the one of the run that has made the plan.
    plans = [b.a_kept_plan(), b.a_kept_plan(run_id=RUN)]
    kept = [b.a_planned_task(phase=p, kept=k).status for p in (model.AWAITING_APPROVAL, model.QUEUED) for k in plans]
    fresh |= st.sampled_from(kept)
    if not is_claimed:
        return fresh | ended
    phases = [model.ASSIGNED, model.PREPARING, model.PLANNING, model.APPLYING, model.CANCELLING]
    superseded = model.CancelStatus(by="Superseded", superseded_by="network-2", requested_at=b.at(-9))
    cancels = (None, superseded)
    return fresh | ended | st.sampled_from([b.a_status(phase, cancel=cancel) for phase in phases for cancel in cancels])


@st.composite
def tasks(draw: st.DrawFn, *, is_claimed: bool) -> Task:
    return b.a_task(
        approval=draw(st.sampled_from(list(model.ApprovalMode))),
        approved_plan_digest=draw(st.sampled_from(["", b.DIGEST])),
        approval_timeout_seconds=draw(st.sampled_from([60, 86_400])),
        cancel=draw(st.booleans()),
        cancel_mode=draw(st.sampled_from(list(model.CancelMode))),
        is_deleting=draw(st.booleans()),
        has_finalizer=draw(st.booleans()),
        # With a claim, another UID is not that of a copy: somebody has changed the annotation.
        stamp=draw(st.sampled_from([None, UID, "uid-of-the-original"])),
        generation=draw(st.integers(1, 2)),
        queue_timeout_seconds=draw(st.sampled_from([None, 30, 90])),
        ttl_seconds_after_finished=draw(st.sampled_from([None, 1, 90])),
        status=draw(statuses(is_claimed)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    is_claimed = draw(st.booleans())
    allowed = [frozenset(model.ApprovalMode), frozenset({model.ApprovalMode.MANUAL})]
    pod = draw(st.sampled_from([b.running_pod, b.ended_pod, b.collected_pod, b.pod_of_another_container, b.lost]))
    return b.a_snapshot(
        task=draw(tasks(is_claimed=is_claimed)),
        claimed=is_claimed,
        pod=pod,
        agent_is_gone=is_claimed and pod is None and draw(st.booleans()),
        session=draw(st.none() | sessions()) if is_claimed else None,
        report=draw(st.none() | reports()) if is_claimed else None,
        pool_grace_s=draw(st.sampled_from([None, 403, 104])) if not is_claimed else None,
        allowed_approval=draw(st.sampled_from([None, *allowed])) if not is_claimed else None,
        pool_env_from=draw(st.sampled_from([None, ()])),
        queueing=draw(st.sampled_from([None, b.in_line, b.in_vain])),
        superseded_by=draw(st.sampled_from(["", "network-2", "network-3"])),
        log_kept=draw(st.sampled_from([None, False, True])),
        state_lock=draw(st.sampled_from([None, b.a_free_lock, b.a_held_lock, b.an_unreadable_lock])),
        last_status_write_at=NOW - draw(st.sampled_from([0.5, 1e5])),
        runs=draw(st.sampled_from([1, 1_000])),
    )
