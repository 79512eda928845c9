"""The invariants of docs/design that `decide` alone can break, for any snapshot whatever."""

from __future__ import annotations

import msgspec
from hypothesis import given
from msgspec.structs import replace

from terrahalt_operator.core import fit, model
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
    WriteStatus,
)
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import Snapshot, TaskStatus
from terrahalt_protocol.messages import Ack, Cancel, CancelMode, Leave, RefreshCredentials, RefusalCode, Source, Start
from tests.operator_core.builders import NOW, RUN, UID, a_free_lock
from tests.operator_core.schema import faults_of_status
from tests.operator_core.strategies import snapshots


def status_written(decision: Decision) -> TaskStatus | None:
    written = [a.status for a in decision.actions if isinstance(a, WriteStatus)]
    assert len(written) <= 1
    return written[0] if written else None


def sent(decision: Decision) -> list[object]:
    return [a.command for a in decision.actions if isinstance(a, Send)]


def is_proven_dead(s: Snapshot) -> bool:
    """What invariant 1 allows as evidence that no process of the run is alive, or ever was; or in its place."""
    if s.claim is None:
        return True
    if s.report is not None and s.report.report.result is not None:
        return True
    if s.task.spec.cancel and s.task.spec.cancel_mode is model.CancelMode.ABANDON:
        return True
    if s.task.awaits_approval:  # the phase changes before anything is started
        return True
    if s.agent is not None and s.agent.ended is not None and s.agent.ended.container_id == s.claim.container_id:
        return True
    refused = s.session.refused if s.session else None
    if s.session is None or refused is None or refused.code is RefusalCode.STALE_EPOCH:
        return False
    return refused.run_id == RUN and RUN not in s.session.runs


def waits_again(s: Snapshot, decision: Decision) -> bool:
    """The pod went before it was given the run: it was never started, by nobody."""
    assert s.claim is not None
    has_gone = s.agent_is_gone or (s.agent is not None and (s.agent.is_deleting or s.agent.is_over))
    is_held = s.report is not None or (s.session is not None and RUN in s.session.runs)
    new = status_written(decision) or s.task.status
    return new.phase == model.QUEUED and not new.run_id and has_gone and not is_held


def its_plan_is_kept(s: Snapshot, status: TaskStatus | None = None) -> bool:
    """The claim is that of a run whose end is on record as a plan, which is all that it has done."""
    kept = s.task.kept_plan if status is None else status.plan
    return s.claim is not None and kept is not None and bool(kept.digest) and kept.run_id == s.claim.run_id


@given(snapshots())
def test_1_a_terminal_phase_is_written_only_with_evidence(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    if new is not None and new.is_terminal and not s.task.status.is_terminal:
        assert is_proven_dead(s)


@given(snapshots())
def test_1_a_claim_is_released_only_once_the_end_is_on_record(s: Snapshot) -> None:
    decision = decide(s, NOW)
    is_on_record = s.task.status.is_terminal or its_plan_is_kept(s)
    for action in decision.actions:
        if isinstance(action, WriteStatus):
            is_on_record |= action.status.is_terminal or its_plan_is_kept(s, action.status)
        if isinstance(action, ReleaseClaim | RemoveTaskFinalizer) or (
            isinstance(action, Send) and isinstance(action.command, Ack)
        ):
            assert is_on_record or s.claim is None or waits_again(s, decision)


@given(snapshots())
def test_1_only_what_a_person_abandoned_ends_as_abandoned_and_never_as_cancelled(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    if new is None or s.task.status.is_terminal or new.result is None or s.claim is None:
        return
    if new.result.reason == "Abandoned":
        assert s.task.spec.cancel
        assert s.task.spec.cancel_mode is model.CancelMode.ABANDON
        assert (new.phase, new.result.state, new.result.lock) == ("Failed", "Unknown", "Unknown")


@given(snapshots())
def test_1_an_abandoned_agent_is_deleted_before_its_workspace_is_given_away(s: Snapshot) -> None:
    decision = decide(s, NOW)
    new = status_written(decision) or s.task.status
    kinds = [type(action) for action in decision.actions]
    if new.is_terminal and new.result is not None and new.result.reason == "Abandoned" and ReleaseClaim in kinds:
        assert s.agent is None or s.agent.is_deleting or DeleteAgent in kinds[: kinds.index(ReleaseClaim)]
    else:
        assert DeleteAgent not in kinds


@given(snapshots())
def test_2_a_run_is_started_only_with_stamp_and_claim(s: Snapshot) -> None:
    for command in sent(decide(s, NOW)):
        if isinstance(command, Start):
            assert s.task.stamp == UID
            assert s.task.has_finalizer
            assert s.claim is not None
            assert command.run_id == s.claim.run_id


@given(snapshots())
def test_3_a_terminal_status_keeps_its_phase_and_all_that_it_told(s: Snapshot) -> None:
    old, new = s.task.status, status_written(decide(s, NOW))
    if old.is_terminal and new is not None:
        blank = {"observed_generation": 0, "conditions": ()}
        assert _replace(new, **blank) == _replace(old, **blank)


@given(snapshots())
def test_3_a_copy_never_runs(s: Snapshot) -> None:
    if s.task.is_restored_copy and s.claim is None:
        decision = decide(s, NOW)
        assert not sent(decision)
        assert not any(isinstance(a, StampTask) for a in decision.actions)


@given(snapshots())
def test_4_the_true_result_wins(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    result = s.report.report.result if s.report else None
    if new is not None and result is not None and not s.task.status.is_terminal:
        if result.kept_plan is not None and s.task.kept_plan is None:
            makes_way = s.task.status.cancel is not None and s.task.status.cancel.superseded_by
            assert new.phase == ("Cancelled" if s.task.wants_cancel or makes_way else "AwaitingApproval")
            return
        assert new.phase == result.outcome.value
        reasons = {c.type: c.reason for c in new.conditions}
        if s.task.wants_cancel and new.phase == model.SUCCEEDED:
            assert reasons["CancelRequested"] == "TooLate"


def is_hurried(s: Snapshot) -> bool:
    """The pod of this run goes, and leaves no time for more than Force."""
    hurry_at = fit.hurry_at(s.agent, s.report)
    return hurry_at is not None and hurry_at <= NOW and s.session is not None and RUN in s.session.runs


@given(snapshots())
def test_5_a_cancel_reaches_every_agent_that_can_be_reached(s: Snapshot) -> None:
    if s.claim is None or s.session is None or not s.task.wants_cancel or s.task.status.is_terminal:
        return
    decision = decide(s, NOW)
    new = status_written(decision)
    if any(isinstance(a, StampTask | ReadStateLock | KeepLog) for a in decision.actions):
        return
    if (new and new.is_terminal and not new.is_abandoned) or its_plan_is_kept(s) or waits_again(s, decision):
        return
    cancels = [c for c in sent(decision) if isinstance(c, Cancel)]
    cancel = cancels[0] if cancels else s.session.sent_cancel
    assert cancel is not None
    is_graceful = s.task.spec.cancel_mode is model.CancelMode.GRACEFUL and not is_hurried(s)
    assert (cancel.run_id, cancel.grace_s) == (RUN, 300)
    assert cancel.mode is (CancelMode.GRACEFUL if is_graceful else CancelMode.FORCE)


@given(snapshots())
def test_5_a_cancel_for_a_newer_task_is_on_record_and_goes_only_to_who_spares_an_apply(s: Snapshot) -> None:
    status = s.task.status
    for action in decide(s, NOW).actions:
        if isinstance(action, WriteStatus):
            status = action.status
        if isinstance(action, Send) and isinstance(action.command, Cancel) and action.command.superseded_by:
            assert s.session is not None
            assert s.session.hello.spares_apply
            assert status.cancel is not None
            assert (status.cancel.by, status.cancel.superseded_by) == ("Superseded", action.command.superseded_by)
            assert not s.task.wants_cancel


@given(snapshots())
def test_an_object_is_deleted_only_when_its_end_is_on_record_and_its_time_is_over(s: Snapshot) -> None:
    if any(isinstance(action, DeleteTask) for action in decide(s, NOW).actions):
        assert s.task.status.is_terminal
        assert s.task.spec.ttl_seconds_after_finished == 1


@given(snapshots())
def test_6_start_goes_once_on_a_connection_and_never_to_who_holds_the_run(s: Snapshot) -> None:
    for command in sent(decide(s, NOW)):
        if isinstance(command, Start):
            assert s.session is not None
            assert s.session.sent_start != RUN
            assert RUN not in s.session.runs
            assert not s.task.wants_cancel
            assert not s.task.status.is_terminal
            assert s.session.mismatch is None


@given(snapshots())
def test_6_a_start_plans_or_applies_the_plan_that_a_person_approved_and_never_both(s: Snapshot) -> None:
    for command in sent(decide(s, NOW)):
        if isinstance(command, Start):
            assert (command.approval is not None) is s.task.spec.needs_approval
            if command.approval is None:
                continue
            assert command.source == Source()
            if (kept := s.task.kept_plan) is None:
                assert command.approval.plan is None
            else:
                assert command.run_id != kept.run_id
                assert command.approval.plan is not None
                assert command.approval.plan.digest == s.task.spec.approved_plan_digest


@given(snapshots())
def test_a_plan_on_record_stays_as_it_is(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    if s.task.kept_plan is not None and new is not None:
        assert new.plan == s.task.kept_plan


@given(snapshots())
def test_commands_go_to_the_agent_of_the_claim_in_the_present_epoch(s: Snapshot) -> None:
    for action in decide(s, NOW).actions:
        if isinstance(action, Send):
            assert s.claim is not None
            assert not isinstance(action.command, RefreshCredentials | Leave)
            assert (action.pod_uid, action.command.run_id) == (s.claim.pod_uid, s.claim.run_id)
            assert action.command.epoch == s.epoch


@given(snapshots())
def test_7_a_decision_that_was_carried_out_is_not_taken_again(s: Snapshot) -> None:
    """Level-triggered: a few rounds lead to rest, whatever was found."""
    for _ in range(5):
        decision = decide(s, NOW)
        if not decision.actions:
            return
        s = carried_out(s, decision)
    raise AssertionError(f"no rest: {decision}")


@given(snapshots())
def test_7_a_crash_between_two_actions_leads_to_the_same_end(s: Snapshot) -> None:
    whole, torn = s, s
    first = decide(s, NOW)
    for _ in range(5):
        whole = carried_out(whole, decide(whole, NOW))
    torn = carried_out(torn, Decision(first.actions[:1]))
    # The operator that comes next finds the agent anew, and what it holds.
    if torn.session is not None:
        torn = replace(torn, session=replace(torn.session, sent_start="", sent_cancel=None))
    for _ in range(5):
        torn = carried_out(torn, decide(torn, NOW))
    assert torn.task.status.phase == whole.task.status.phase
    assert (torn.claim is None) == (whole.claim is None)


@given(snapshots())
def test_a_status_fits_the_schema_and_is_read_back_as_it_was_written(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    if new is not None:
        assert faults_of_status(new) == []


@given(snapshots())
def test_no_stage_of_a_cancel_comes_before_the_one_that_leads_to_it(s: Snapshot) -> None:
    new = status_written(decide(s, NOW))
    if new is not None and new.cancel is not None:
        cancel = new.cancel
        stages = [cancel.requested_at, cancel.sent_at, cancel.signalled_at, cancel.exited_at, cancel.swept_at]
        present = [stage for stage in (*stages, new.finished_at) if stage]
        assert present == sorted(present)


def carried_out(s: Snapshot, decision: Decision) -> Snapshot:
    """The snapshot after these actions, with nothing else changed."""
    for action in decision.actions:
        match action:
            case WriteStatus(status=status):
                s = replace(s, task=replace(s.task, status=status))
            case StampTask():
                s = replace(s, task=replace(s.task, stamp=s.task.uid, has_finalizer=True))
            case DeleteTask():
                s = replace(s, task=replace(s.task, is_deleting=True))
            case RemoveTaskFinalizer():
                s = replace(s, task=replace(s.task, has_finalizer=False))
            case ReleaseClaim():
                s = replace(s, claim=None, agent=None, session=None, report=None)
            case DeleteAgent():
                assert s.agent is not None
                s = replace(s, agent=replace(s.agent, is_deleting=True))
            case ReserveAgent():
                pass
            case KeepLog():
                s = replace(s, log_kept=True)
            case ReadStateLock():
                s = replace(s, state_lock=a_free_lock)
            case Send(command=Ack(run_id=run)):
                assert s.session is not None
                s = replace(s, session=replace(s.session, runs=s.session.runs - {run}))
            case Send(command=Cancel() as cancel):
                assert s.session is not None
                s = replace(s, session=replace(s.session, sent_cancel=cancel))
            case Send(command=Start(run_id=run)):
                assert s.session is not None
                s = replace(s, session=replace(s.session, sent_start=run, is_used=True))
    return s


def _replace(status: TaskStatus, **changes: object) -> TaskStatus:
    return msgspec.structs.replace(status, **changes)
