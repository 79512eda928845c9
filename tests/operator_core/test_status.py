"""What the status says: whole values, times that never move, conditions."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from terrahalt_operator.core import status
from terrahalt_operator.core.actions import WriteStatus
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import (
    AgentStatus,
    BackendSpec,
    CancelMode,
    CancelStatus,
    GitSpec,
    LogStatus,
    OutputsStatus,
    PlanStatus,
    ProgressStatus,
    Queueing,
    QueueStatus,
    ReceivedReport,
    ResultStatus,
    Snapshot,
    SourceSpec,
    SourceStatus,
    StateLock,
    TaskStatus,
)
from terrahalt_protocol import kept_log
from terrahalt_protocol.messages import (
    Action,
    CancelReason,
    Lock,
    LockCondition,
    Outcome,
    PublishedOutputs,
    Rung,
    StateCondition,
    Step,
)
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, RUN, a_report, a_snapshot, a_task, at, holding
from tests.operator_core.schema import faults_of_status

AGENT = AgentStatus(pod_name="default-agent-1", pod_uid=b.POD_UID, container_id=b.CONTAINER)
HEARD_OF = msgspec.structs.replace(AGENT, boot_id="boot")
"""The same once a report named its boot."""


def bare(new: TaskStatus) -> TaskStatus:
    """Without the conditions, which have tests of their own."""
    return msgspec.structs.replace(new, conditions=())


def told(new: TaskStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in new.conditions}


def write(snapshot: Snapshot, now: float = NOW) -> TaskStatus:
    """The status that `decide` writes, or the one there is."""
    written = [a.status for a in decide(snapshot, now).actions if isinstance(a, WriteStatus)]
    return written[-1] if written else snapshot.task.status


def then(snapshot: Snapshot, now: float = NOW, **changes: object) -> Snapshot:
    """After the write; `changes` come next."""
    task = replace(snapshot.task, status=write(snapshot, now))
    return replace(snapshot, **{"task": task, **changes})


# ---- whole statuses


def test_times_are_utc_with_microseconds() -> None:
    assert status.timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert status.timestamp(1_750_000_000.25) == "2025-06-15T15:06:40.250000Z"


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_times_compare_as_text(one: float, other: float) -> None:
    assert (one < other) or status.timestamp(one) >= status.timestamp(other)


def test_a_queued_task() -> None:
    new = write(a_snapshot(claimed=False, queueing=Queueing(position=2, waiting_for="workspace network")))
    assert bare(new) == TaskStatus(
        phase="Queued",
        observed_generation=1,
        message="waiting for workspace network",
        queue=QueueStatus(position=2, waiting_for="workspace network"),
    )


def test_an_assigned_task() -> None:
    assert bare(write(a_snapshot(task=a_task(phase="Queued")))) == TaskStatus(
        phase="Assigned",
        observed_generation=1,
        message="given to agent pod default-agent-1",
        agent=AGENT,
        run_id=RUN,
    )


def test_an_apply_under_way() -> None:
    received = a_report(
        message="terraform apply", plan=b.a_plan, resources_done=2, resources_current="aws_vpc.main", started_s=8.5
    )
    assert bare(write(a_snapshot(session=holding(), report=received))) == TaskStatus(
        phase="Applying",
        observed_generation=1,
        message="terraform apply",
        agent=HEARD_OF,
        run_id=RUN,
        plan=PlanStatus(add=3, change=1, destroy=0),
        progress=ProgressStatus(done=2, planned=4, current="aws_vpc.main", summary="2/4"),
        started_at=at(-8.5),
    )


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        (Step.PREPARE, "Preparing"),
        (Step.INIT, "Preparing"),
        (Step.PLAN, "Planning"),
        (Step.APPLY, "Applying"),
    ],
)
def test_each_step_has_its_phase(step: Step, phase: str) -> None:
    assert write(a_snapshot(session=holding(), report=a_report(step))).phase == phase


@pytest.mark.parametrize("phase", ["", "Queued"])
def test_a_run_that_is_first_heard_of_in_its_sweep_is_not_queued(phase: str) -> None:
    snapshot = a_snapshot(task=a_task(phase=phase), session=holding(), report=a_report(Step.SWEEP))
    assert write(snapshot).phase == "Assigned"


@pytest.mark.parametrize("phase", ["Preparing", "Planning", "Applying", "Cancelling"])
def test_without_news_of_the_run_the_phase_stays(phase: str) -> None:
    task = a_task(status=b.a_status(phase))
    assert write(a_snapshot(task=task, session=None)).phase == phase
    assert write(a_snapshot(task=task, session=holding(), report=a_report(Step.SWEEP))).phase == phase


def test_the_commit_that_was_fetched_is_told_once_it_is_known_and_stays() -> None:
    task = a_task(source=SourceSpec(git=GitSpec(url="https://git.example.com/a")))
    fetching = a_snapshot(task=task, session=holding(), report=a_report(Step.PREPARE))
    assert write(fetching).source is None
    fetched = write(a_snapshot(task=task, session=holding(), report=a_report(Step.INIT, source_commit="4b825dc")))
    assert fetched.source == SourceStatus(commit="4b825dc")
    later = a_snapshot(task=replace(task, status=fetched), session=holding(), report=a_report(Step.PLAN))
    assert write(later).source == SourceStatus(commit="4b825dc")


def test_a_commit_is_cut_to_what_git_calls_one() -> None:
    snapshot = a_snapshot(session=holding(), report=a_report(Step.INIT, source_commit="a" * 10_000))
    assert write(snapshot).source == SourceStatus(commit="a" * 64)


def test_a_plan_has_no_progress_of_an_apply() -> None:
    received = b.a_final_report(plan=b.a_plan)
    snapshot = a_snapshot(task=a_task(action=Action.PLAN), session=holding(), report=received)
    assert write(snapshot).progress is None
    assert write(snapshot).plan == PlanStatus(add=3, change=1, destroy=0)


def test_a_failed_apply_tells_all_that_its_report_tells() -> None:
    result = b.a_result(
        Outcome.CANCELLED,
        message="stopped after the resources under way",
        exit_code=-9,
        state=StateCondition.INCOMPLETE,
        lock=Lock(condition=LockCondition.HELD, id="lock-1", who="x", command="terraform force-unlock lock-1"),
        forced=True,
        open_addresses=tuple(f"a.b[{i}]" for i in range(60)),
        open_address_count=60,
    )
    cancel = b.a_cancel_report(Rung.KILL, received_s=9.0, signalled_s=8.0, exited_s=2.0, swept_s=1.0)
    received = b.a_final_report(result=result, cancel=cancel, started_s=20.0, plan=b.a_plan, resources_done=3)
    new = write(a_snapshot(task=a_task(cancel=True, phase="Applying"), session=holding(), report=received))
    assert bare(new) == TaskStatus(
        phase="Cancelled",
        observed_generation=1,
        message="stopped after the resources under way",
        agent=HEARD_OF,
        run_id=RUN,
        plan=PlanStatus(add=3, change=1, destroy=0),
        progress=ProgressStatus(done=3, planned=4, current="", summary="3/4"),
        cancel=CancelStatus(
            by="User",
            requested_at=at(-9),
            signalled_at=at(-8),
            exited_at=at(-2),
            swept_at=at(-1),
            rung="Kill",
        ),
        result=ResultStatus(
            reason="CancelledByUser",
            state="Incomplete",
            lock="Held",
            exit_code=-9,
            forced=True,
            lock_id="lock-1",
            lock_command="terraform force-unlock lock-1",
            open_addresses=tuple(f"a.b[{i}]" for i in range(50)),
            open_address_count=60,
        ),
        log=LogStatus(secret_name=kept_log.name(RUN)),
        started_at=at(-20),
        finished_at=at(0),
    )


@pytest.mark.parametrize(
    ("lock", "condition", "lock_id", "has_command"),
    [
        (b.a_free_lock, "Released", "", False),
        (b.a_held_lock, "Held", "lock-id", True),
        (b.an_unreadable_lock, "Unknown", "", True),
    ],
)
def test_a_lost_agent_leaves_the_state_unknown_and_the_lock_as_it_was_seen(
    lock: StateLock, condition: str, lock_id: str, has_command: bool
) -> None:
    new = write(a_snapshot(task=b.a_given_task("Applying"), pod=b.ended_pod, session=None, state_lock=lock))
    assert new.result is not None
    assert (new.phase, new.result.reason, new.result.state) == ("Failed", "AgentLost", "Unknown")
    assert (new.result.lock, new.result.lock_id) == (condition, lock_id)
    command = "kubectl -n team-a get lease lock-tfstate-default-network-tf -o yaml" if has_command else ""
    assert new.result.lock_command == command
    assert "OOMKilled, exit code 137" in new.message


def test_the_lock_of_a_lost_agents_own_run_comes_with_the_command_that_releases_it_and_no_others() -> None:
    own = StateLock(is_readable=True, holder="lock-id", who=f"nonroot@{b.a_claim().pod_name}")
    new = write(a_snapshot(task=b.a_given_task("Applying"), pod=b.ended_pod, session=None, state_lock=own))
    assert new.result is not None
    begin, _, patch = new.result.lock_command.partition(" -p ")
    assert begin == "kubectl -n team-a patch lease lock-tfstate-default-network-tf --type=json"
    assert json.loads(patch.strip("'"))[0] == {"op": "test", "path": "/spec/holderIdentity", "value": "lock-id"}


def test_a_lock_that_only_terraform_can_see_is_unknown_with_the_command_for_it() -> None:
    task = b.a_given_task("Applying", backend=BackendSpec(type="s3", config={"bucket": "states"}))
    lock = b.an_unreadable_lock
    new = write(a_snapshot(task=task, pod=b.ended_pod, session=None, state_lock=lock))
    assert new.result is not None
    assert new.result.lock == "Unknown"
    assert new.result.lock_command.startswith("TF_WORKSPACE=network terraform force-unlock ID  # in the task's source")


def test_a_lost_agent_is_failed_also_where_a_cancel_was_asked_for() -> None:
    snapshot = a_snapshot(task=b.a_given_task(cancel=True), pod=b.ended_pod, session=None, state_lock=b.a_free_lock)
    assert write(snapshot).phase == "Failed"


def test_an_abandoned_task_says_what_is_not_known_and_how_to_look() -> None:
    task = b.a_given_task("Cancelling", cancel=True, cancel_mode=CancelMode.ABANDON)
    new = write(a_snapshot(task=task, pod=b.collected_pod, session=None))
    look = "kubectl -n team-a get lease lock-tfstate-default-network-tf -o yaml"
    assert new.result == ResultStatus(reason="Abandoned", state="Unknown", lock="Unknown", lock_command=look)
    assert new.cancel == CancelStatus(by="User", requested_at=at(0))
    for words in (
        "may still be at work in agent pod default-agent-1",
        "kubectl -n team-a get pod default-agent-1",
        look,
        "run a Plan",
    ):
        assert words in new.message
    assert told(new)["Finished"] == told(new)["Stalled"] == ("True", "Abandoned")
    assert told(new)["CancelRequested"] == ("True", "User")


def test_a_task_cancelled_in_the_queue_says_that_nothing_ran() -> None:
    new = write(a_snapshot(task=a_task(cancel=True, phase="Queued"), claimed=False))
    assert bare(new) == TaskStatus(
        phase="Cancelled",
        observed_generation=1,
        message="cancelled before it was given to an agent; nothing ran",
        cancel=CancelStatus(by="User", requested_at=at(0), rung="NotStarted"),
        result=ResultStatus(reason="CancelledByUser", state="Complete", lock="Released"),
        finished_at=at(0),
    )


# ---- the stages of a cancel


def test_the_stages_come_one_by_one_and_stay() -> None:
    """Each report gives ages anew; a clock that jitters must not move what was written."""
    start = a_snapshot(task=a_task(cancel=True), session=holding())
    sent = then(start, NOW)
    signalled = then(
        sent,
        NOW + 1,
        report=a_report(received_at=NOW + 1, cancel=b.a_cancel_report(received_s=0.9, signalled_s=0.8)),
    )
    signalled = then(signalled, NOW + 1)
    late = a_report(
        received_at=NOW + 60,
        cancel=b.a_cancel_report(Rung.KILL, received_s=10.0, signalled_s=10.0, exited_s=5.0, swept_s=4.0),
    )
    final = then(replace(signalled, report=late), NOW + 60)
    assert final.task.status.cancel == CancelStatus(
        by="User",
        requested_at=at(0),
        sent_at=at(0),
        signalled_at=at(0.2),
        exited_at=at(55),
        swept_at=at(56),
        rung="Kill",
    )


def test_a_cancel_that_the_agent_began_itself_says_who_asked() -> None:
    cancel = b.a_cancel_report(reason=CancelReason.TIMEOUT, received_s=5.0, signalled_s=4.0)  # type: ignore[arg-type]
    new = write(a_snapshot(session=holding(), report=a_report(cancel=cancel)))
    assert new.phase == "Cancelling"
    assert new.cancel == CancelStatus(by="Timeout", requested_at=at(-5), signalled_at=at(-4), rung="Interrupt")


def test_a_run_that_the_agent_ended_for_a_cause_of_its_own_says_which() -> None:
    cancel = b.a_cancel_report(reason=CancelReason.TIMEOUT, received_s=5.0)  # type: ignore[arg-type]
    cancel = msgspec.structs.replace(cancel, cause="OutOfMemory")
    new = write(a_snapshot(session=holding(), report=a_report(cancel=cancel)))
    assert new.cancel is not None
    assert new.cancel.by == "OutOfMemory"
    assert next(c.reason for c in new.conditions if c.type == "CancelRequested") == "OutOfMemory"


def test_a_user_who_comes_after_a_timeout_moves_no_stage() -> None:
    cancel = b.a_cancel_report(reason=CancelReason.TIMEOUT, received_s=5.0, signalled_s=4.0)  # type: ignore[arg-type]
    timed_out = then(a_snapshot(session=holding(), report=a_report(cancel=cancel)))
    asked = replace(timed_out.task, spec=b.a_spec(cancel=True))
    new = write(replace(timed_out, task=asked), NOW + 10)
    assert new.cancel is not None
    assert (new.cancel.by, new.cancel.requested_at, new.cancel.signalled_at) == ("Timeout", at(-5), at(-4))
    assert in_order(new)


def in_order(new: TaskStatus) -> bool:
    if new.cancel is None:
        return True
    cancel = new.cancel
    stages = [cancel.requested_at, cancel.sent_at, cancel.signalled_at, cancel.exited_at, cancel.swept_at]
    present = [stage for stage in (*stages, new.finished_at) if stage]
    return present == sorted(present)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, ReceivedReport | None, bool]]:
    """Moments of one cancel: when, what was reported, whether `spec.cancel` is set by then."""
    now, is_asked, moments = NOW, False, []
    ages = st.none() | st.floats(0, 100)
    for _ in range(draw(st.integers(1, 6))):
        now += draw(st.floats(0, 50))
        is_asked |= draw(st.booleans())
        received = None
        if draw(st.booleans()):
            names = ("received_s", "signalled_s", "exited_s", "swept_s")
            told = {name: draw(ages) for name in names}
            cancel = b.a_cancel_report(draw(st.sampled_from(list(Rung))), cause="", **told)
            result = draw(st.sampled_from([None, None, b.a_result(Outcome.CANCELLED)]))
            received = a_report(received_at=now - draw(st.floats(0, 5)), cancel=cancel, result=result)
        moments.append((now, received, is_asked))
    return moments


@given(histories())
def test_no_stage_is_ever_negative_and_none_moves_once_written(
    moments: list[tuple[float, ReceivedReport | None, bool]],
) -> None:
    snapshot = a_snapshot(session=holding())
    for now, received, is_asked in moments:
        old = snapshot.task.status
        task = replace(snapshot.task, spec=b.a_spec(cancel=is_asked))
        snapshot = then(replace(snapshot, task=task, report=received), now)
        new = snapshot.task.status
        assert in_order(new)
        if old.cancel is not None:
            assert new.cancel is not None
            assert new.cancel.by == old.cancel.by
            for stage in ("requested_at", "sent_at", "signalled_at", "exited_at", "swept_at"):
                assert getattr(old.cancel, stage) in ("", getattr(new.cancel, stage))


# ---- conditions


QUEUED = a_snapshot(claimed=False, queueing=b.in_line)
RUNNING = a_snapshot(session=holding(), report=a_report(plan=b.a_plan))


def test_the_conditions_of_a_run_under_way() -> None:
    assert told(write(RUNNING)) == {
        "Reconciling": ("True", "Applying"),
        "Stalled": ("False", "Applying"),
        "Ready": ("False", "Applying"),
        "Finished": ("False", "Applying"),
        "Accepted": ("True", "Accepted"),
        "Scheduled": ("True", "Assigned"),
        "PlanReady": ("True", "Planned"),
    }


def test_the_conditions_of_a_success_that_came_before_the_cancel() -> None:
    snapshot = replace(RUNNING, task=a_task(cancel=True), report=b.a_final_report())
    assert told(write(snapshot)) == {
        "Reconciling": ("False", "Succeeded"),
        "Stalled": ("False", "Succeeded"),
        "Ready": ("True", "Succeeded"),
        "Finished": ("True", "Succeeded"),
        "Accepted": ("True", "Accepted"),
        "Scheduled": ("True", "Assigned"),
        "PlanReady": ("False", "NotPlanned"),
        "CancelRequested": ("True", "TooLate"),
    }


def test_the_log_of_a_run_is_named_where_it_is_kept_by_its_agent_or_by_the_operator() -> None:
    kept = LogStatus(secret_name=kept_log.name(RUN))
    assert write(a_snapshot(session=holding(), report=b.a_final_report())).log == kept
    lost = a_snapshot(task=b.a_given_task(), pod=b.ended_pod, session=None, state_lock=b.a_free_lock, log_kept=True)
    assert write(lost).log == kept
    assert write(replace(lost, log_kept=False)).log is None
    not_kept = b.a_final_report(result=b.a_result(log_kept=False))
    assert write(a_snapshot(session=holding(), report=not_kept)).log is None
    assert write(replace(lost, report=not_kept)).log == kept


def test_the_log_of_a_plan_is_named_until_its_apply_has_one() -> None:
    planned = write(a_snapshot(task=a_task(approval="Manual"), session=holding(), report=b.a_plan_report()))
    assert planned.phase == "AwaitingApproval"
    assert planned.log == LogStatus(secret_name=kept_log.name(RUN))


def test_outputs_that_are_published_are_named_and_counted() -> None:
    result = b.a_result(outputs=PublishedOutputs(secret="network-outputs", count=3))
    new = write(a_snapshot(session=holding(), report=b.a_final_report(result=result)))
    assert new.outputs == OutputsStatus(secret_name="network-outputs", count=3)
    assert told(new)["OutputsPublished"] == ("True", "Published")


def test_outputs_that_are_not_published_leave_a_success_as_it_is_and_say_why() -> None:
    result = b.a_result(outputs=PublishedOutputs(secret="network-outputs", problem="it is somebody's"))
    snapshot = a_snapshot(task=a_task(cancel=True), session=holding(), report=b.a_final_report(result=result))
    new = write(snapshot)
    assert new.phase == "Succeeded"
    assert new.outputs == OutputsStatus(secret_name="network-outputs", problem="it is somebody's")
    assert told(new)["Ready"] == ("True", "Succeeded")
    assert told(new)["CancelRequested"] == ("True", "TooLate")
    assert told(new)["OutputsPublished"] == ("False", "NotPublished")
    (condition,) = [c for c in new.conditions if c.type == "OutputsPublished"]
    assert condition.message == "it is somebody's"


def test_the_conditions_of_a_cancelled_run() -> None:
    snapshot = replace(
        RUNNING,
        task=a_task(cancel=True),
        report=b.a_final_report(Outcome.CANCELLED, cancel=b.a_cancel_report(received_s=1.0)),
    )
    conditions = told(write(snapshot))
    assert conditions["Stalled"] == ("True", "CancelledByUser")
    assert conditions["Finished"] == ("True", "CancelledByUser")
    assert conditions["CancelRequested"] == ("True", "User")


def test_a_cancel_of_a_task_that_has_ended_is_answered_too_late() -> None:
    ended = then(replace(RUNNING, report=b.a_final_report()))
    task = replace(ended.task, spec=b.a_spec(cancel=True), generation=2)
    new = write(a_snapshot(task=task, claimed=False))
    assert (new.phase, told(new)["CancelRequested"]) == ("Succeeded", ("True", "TooLate"))


def test_a_task_that_is_refused_is_not_accepted() -> None:
    assert told(write(a_snapshot(task=a_task(stamp="other"), claimed=False)))["Accepted"] == ("False", "RestoredCopy")
    misfit = a_snapshot(task=a_task(cancel_grace_seconds=900), claimed=False)
    assert told(write(misfit))["Accepted"] == ("False", "InvalidBudget")


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = then(QUEUED, NOW)
    running = then(a_snapshot(task=first.task, report=a_report(Step.PLAN), session=holding()), NOW + 10)
    ended = then(replace(running, report=b.a_final_report()), NOW + 20)
    since = {c.type: c.last_transition_time for c in ended.task.status.conditions}
    assert since == {
        "Reconciling": at(20),
        "Stalled": at(0),
        "Ready": at(20),
        "Finished": at(20),
        "Accepted": at(0),
        "Scheduled": at(10),
        "PlanReady": at(0),
    }


# ---- what the API server takes


def long(size: int) -> str:
    return "x" * size


@pytest.mark.parametrize(
    "result",
    [
        b.a_result(Outcome.FAILED, message=long(100_000)),
        b.a_result(Outcome.FAILED, reason=""),
        b.a_result(Outcome.FAILED, reason=long(5_000)),
        b.a_result(outputs=PublishedOutputs(secret=long(5_000), problem=long(100_000))),
    ],
    ids=["long message", "no reason", "long reason", "long trouble with outputs"],
)
def test_whatever_an_agent_reports_the_end_can_be_written(result: object) -> None:
    """A status that the API server refuses would keep the task and its workspace for ever."""
    assert faults_of_status(write(a_snapshot(session=holding(), report=b.a_final_report(result=result)))) == []


def test_a_long_message_of_a_running_agent_can_be_written() -> None:
    assert faults_of_status(write(a_snapshot(session=holding(), report=a_report(message=long(100_000))))) == []


def test_a_long_refusal_and_a_long_end_can_be_written() -> None:
    refused = msgspec.structs.replace(b.a_refusal(), message=long(100_000))
    assert faults_of_status(write(a_snapshot(session=b.a_session(refused=refused)))) == []
    pod = replace(b.ended_pod, ended=b.an_end(reason=long(100_000)))
    assert faults_of_status(write(a_snapshot(pod=pod, session=None, state_lock=b.a_free_lock))) == []
