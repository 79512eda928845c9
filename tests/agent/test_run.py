"""The way of a run without a cancel, and what it tells on the way."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_agent.core.events import (
    AftermathChecked,
    ErroredState,
    ExecFailed,
    OutputDrained,
    PreparationFailed,
    ProcessExited,
    ProvidersShared,
    RunPrepared,
    StateKept,
    SweepEmptied,
    SweepStalled,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    CheckAftermath,
    DrainOutput,
    ExecTerraform,
    KeepState,
    KillTerraform,
    LeaveToKernel,
    PrepareRun,
    SendReport,
    ShareProviders,
    Sweep,
    WriteTerminationMessage,
)
from terrahalt_agent.core.terraform_log import Line
from terrahalt_protocol.messages import (
    Action,
    Approval,
    ApprovedPlan,
    Lock,
    LockCondition,
    Outcome,
    PlanSummary,
    Source,
    StateCondition,
    Step,
)
from tests.agent.builders import (
    FREE,
    KEY,
    RUN_ID,
    TIMES,
    Story,
    a_start,
    an_error,
    begun,
    completed,
    logged,
    operation_canceled,
    summary,
    two_interrupts,
    version,
)


def test_an_apply_goes_through_all_steps_and_sweeps_after_each_process() -> None:
    story = Story()
    story.tell(RunPrepared())
    for following in (ExecTerraform(Step.PLAN), KeepState()):
        assert story.tell(ProcessExited(0)) == [Sweep()]
        assert story.tell(SweepEmptied(0)) == [DrainOutput()]
        story.tell(logged(summary("plan")))
        assert story.tell(OutputDrained()) == [following]
    assert story.tell(StateKept()) == [ExecTerraform(Step.APPLY)]
    story.tell(logged(begun(), completed(), summary()))
    assert story.tell(ProcessExited(0)) == [Sweep()]
    assert story.tell(SweepEmptied(0)) == [DrainOutput()]
    assert story.tell(OutputDrained()) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert (story.run.result.outcome, story.run.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert story.run.result.message == "Apply complete! Resources: 1 added, 0 changed, 0 destroyed"
    assert not story.run.result.log_kept
    assert story.run.wake_at_s is None


def test_a_result_says_whether_the_log_of_its_run_is_kept() -> None:
    story = Story().in_step(Step.APPLY)
    story.end_process(1, an_error())
    story.tell(AftermathChecked(FREE, log_kept=True))
    assert story.run.result is not None
    assert story.run.result.log_kept


@pytest.mark.parametrize(
    ("exit_code", "lines", "is_in_doubt"),
    [
        (0, (), False),
        (1, (an_error(),), False),
        (1, (two_interrupts(), operation_canceled()), True),
        (1, (an_error("Error releasing the state lock"),), True),
        (1, (an_error("Error acquiring the state lock", detail="Error message: EOF"),), True),
        (1, (an_error("Error acquiring the state lock", detail="Lock Info:\n  ID: 1\n  Who: me@laptop"),), False),
        (1, (an_error("Error acquiring the state lock", detail=f"Lock Info:\n  ID: 1\n  Who: {RUN_ID}@a"),), True),
        (2, (), True),
        (-9, (), True),
    ],
    ids=["done", "failed", "interrupted twice", "not unlocked", "lock without an answer", "lock of another",
         "lock of its own", "crashed", "killed"],
)  # fmt: skip
def test_the_lock_is_in_doubt_where_terraform_did_not_end_by_itself_or_says_so(
    exit_code: int, lines: tuple[Line, ...], is_in_doubt: bool
) -> None:
    (check,) = Story().in_step(Step.APPLY).end_process(exit_code, *lines)
    assert isinstance(check, CheckAftermath)
    assert check.may_hold_lock is is_in_doubt


def test_a_process_that_never_ran_has_left_no_lock() -> None:
    story = Story().in_step(Step.PLAN)
    story.tell(ExecFailed("terraform could not be started"))
    story.tell(SweepEmptied(0))
    assert story.tell(OutputDrained()) == [CheckAftermath()]


def test_a_workspace_that_is_not_there_yet_is_left_to_the_plan_and_that_once() -> None:
    missing = an_error('Currently selected workspace "network" does not exist')
    story = Story().in_step(Step.INIT)
    assert story.end_process(1, missing) == [ExecTerraform(Step.INIT, in_default_workspace=True)]
    assert story.end_process(1, missing) == [CheckAftermath()]
    story = Story().in_step(Step.INIT)
    story.end_process(1, missing)
    assert story.end_process(0) == [ExecTerraform(Step.PLAN)]
    story = Story().in_step(Step.INIT)
    story.cancel()
    assert story.end_process(1, missing) == [CheckAftermath()]


def test_it_begins_with_the_preparation_and_a_report() -> None:
    story = Story()
    assert story.done == [PrepareRun(a_start()), SendReport(story.last)]
    assert (story.last.step, story.last.sequence, story.last.started_s) == (Step.PREPARE, 1, 0.0)


def test_a_plan_ends_after_the_plan() -> None:
    story = Story(action=Action.PLAN).in_step(Step.PLAN)
    assert story.end_process(0, version(), summary("plan")) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert story.run.result.reason == "Planned"
    assert story.last.plan == PlanSummary(add=1)


def test_a_destroy_applies_the_plan_of_its_destruction() -> None:
    story = Story(action=Action.DESTROY).in_step(Step.APPLY)
    assert story.end(0, summary("destroy")).reason == "Destroyed"


def test_a_plan_that_says_nothing_is_not_applied() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.end_process(0, version()) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert story.run.result.reason == "PlanFailed"


@pytest.mark.parametrize(
    ("step", "reason"), [(Step.INIT, "InitFailed"), (Step.PLAN, "PlanFailed"), (Step.APPLY, "ApplyFailed")]
)
def test_a_failed_step_ends_the_run_with_its_first_error(step: Step, reason: str) -> None:
    story = Story().in_step(step)
    error = an_error("no such bucket", address="aws_s3_bucket.b", detail="NoSuchBucket: gone")
    result = story.end(1, error, an_error("another one"))
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, reason, 1)
    assert result.message == f"terraform {step.value.lower()}: no such bucket (aws_s3_bucket.b): NoSuchBucket: gone"


def test_a_run_that_cannot_be_prepared_starts_nothing_and_says_why() -> None:
    story = Story()
    assert story.tell(PreparationFailed("SourceInvalid", "file '../x': no")) == [Sweep()]
    assert story.tell(SweepEmptied(0)) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert (story.run.result.reason, story.run.result.message) == ("SourceInvalid", "file '../x': no")
    assert story.run.result.exit_code is None
    assert not any(isinstance(instruction, ExecTerraform) for instruction in story.done)


def test_a_terraform_that_cannot_be_started_fails_the_step() -> None:
    story = Story().in_step(Step.INIT)
    assert story.tell(ExecFailed("terraform could not be started: no such file")) == [Sweep()]
    story.tell(SweepEmptied(0))
    story.tell(OutputDrained())
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert (story.run.result.reason, story.run.result.outcome) == ("InitFailed", Outcome.FAILED)


def test_a_state_that_cannot_be_copied_is_not_applied_to() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.end_process(0, summary("plan")) == [KeepState()]
    assert story.tell(StateKept("no API server")) == [Sweep()]
    assert story.tell(SweepEmptied(0)) == [DrainOutput()]
    assert story.tell(OutputDrained()) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert (story.run.result.outcome, story.run.result.reason) == (Outcome.FAILED, "StateNotKept")
    assert story.run.result.message == "the apply was not started: no API server"


def test_an_api_server_that_never_answers_starts_no_apply() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.end_process(0, summary("plan")) == [KeepState()]
    assert story.wait() == (TIMES.keep_state_s, [Sweep()])


def test_the_final_report_is_written_before_it_is_sent() -> None:
    story = Story().in_step(Step.APPLY)
    story.end(0, summary())
    written, sent = story.done[-2:]
    assert written == WriteTerminationMessage(story.last, KEY)
    assert sent == SendReport(story.last)
    assert story.last.step is Step.SWEEP


def test_nothing_that_comes_after_the_end_changes_it() -> None:
    story = Story().in_step(Step.APPLY)
    result = story.end(0, summary())
    told = list(story.done)
    for event in (ProcessExited(1), SweepEmptied(0), OutputDrained(), RunPrepared(), AftermathChecked(FREE)):
        assert story.tell(event) == []
    assert story.cancel() == []
    assert (story.run.result, story.done) == (result, told)
    assert story.run.report(story.now_s).cancel is None


def test_sequence_and_age_of_its_reports_grow() -> None:
    story = Story()
    story.tell(RunPrepared(), after_s=2.0)
    story.end_process(0)
    assert [report.sequence for report in story.reports] == [1, 2, 3]
    assert [report.started_s for report in story.reports] == [0.0, 2.0, 2.0]


def test_progress_is_told_at_most_every_two_seconds_and_the_last_one_is_not_lost() -> None:
    story = Story().in_step(Step.APPLY)
    before = len(story.reports)
    story.tell(logged(begun()), after_s=0.5)
    story.tell(logged(completed()), after_s=0.5)
    assert len(story.reports) == before
    assert story.wake() == (1.0, [])
    assert (len(story.reports), story.last.resources_done) == (before + 1, 1)
    story.tell(logged(begun("terraform_data.b")), after_s=5.0)
    assert (len(story.reports), story.last.resources_current) == (before + 2, "terraform_data.b")


def test_the_plan_is_told_as_soon_as_it_is_known() -> None:
    story = Story().in_step(Step.PLAN, summary("plan"))
    assert story.last.plan == PlanSummary(add=1)
    assert story.last.step is Step.PLAN


def test_a_sweep_that_stalls_is_told_and_tried_again() -> None:
    story = Story().in_step(Step.INIT)
    story.tell(ProcessExited(0))
    assert story.tell(SweepStalled((77,))) == [Sweep()]
    assert "1 processes of the run do not end" in story.last.message
    assert story.tell(SweepEmptied(0)) == [DrainOutput()]


def test_where_the_sweep_never_empties_the_result_goes_only_where_the_containers_end_proves_it() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(ProcessExited(0))
    for _ in range(5):
        assert story.tell(SweepStalled((77, 78))) == [Sweep()]
    written, left = story.tell(SweepStalled((77, 78)))
    assert isinstance(written, WriteTerminationMessage)
    assert left == LeaveToKernel((77, 78))
    assert written.report.result is not None
    assert written.report.result.state is StateCondition.UNKNOWN
    assert not any(report.result for report in story.reports)


@pytest.mark.parametrize("step", [Step.PLAN, Step.APPLY])
def test_where_a_log_was_not_read_to_its_end_the_state_is_unknown(step: Step) -> None:
    story = Story().in_step(step)
    story.tell(ProcessExited(0))
    story.tell(SweepEmptied(0))
    story.tell(logged(summary("plan")))
    story.tell(OutputDrained(is_whole=False))
    if step is Step.PLAN:
        story.tell(StateKept())
        story.end_process(0, begun(), completed(), summary())
    story.tell(AftermathChecked(FREE))
    assert story.run.result is not None
    assert (story.run.result.outcome, story.run.result.state) == (Outcome.SUCCEEDED, StateCondition.UNKNOWN)


@pytest.mark.parametrize(
    "events",
    [[ProcessExited(0)], [ProcessExited(0), SweepEmptied(0)], [ProcessExited(0), SweepEmptied(0), OutputDrained()]],
)
def test_an_adapter_that_never_answers_does_not_hold_the_run(events: list[object]) -> None:
    story = Story(timeout_s=100_000)
    story.prepared = RunPrepared(lock_command="look")
    story.in_step(Step.APPLY)
    for event in events:
        story.tell(event)  # type: ignore[arg-type]
    waited_s = 0.0
    while story.run.result is None:
        waited_s += story.wait()[0]
    assert waited_s <= 120.0
    assert story.run.result.lock == Lock(condition=LockCondition.UNKNOWN, command="look")


def test_where_tofu_runs_a_person_reads_tofu_and_not_terraform() -> None:
    story = Story(engine="tofu").in_step(Step.APPLY, begun())
    story.cancel()
    while story.run.wake_at_s is not None and KillTerraform() not in story.done:
        story.wake()
    lock = Lock(condition=LockCondition.HELD, who="01JRUN@agent-0")
    story.end(-9, lock=lock, errored_state=ErroredState("/module/errored.tfstate", fetch="kubectl get it"))
    read = " / ".join(report.message for report in story.reports)
    assert "terraform" not in read.replace("terraform_data.a", "")
    for text in ("tofu init", "tofu plan", "tofu apply", "for tofu to stop", "for tofu to save", "tofu killed"):
        assert text in read
    assert "push it with `tofu state push`" in read


def test_a_warning_about_the_state_is_in_the_message_of_the_end() -> None:
    story = Story().in_step(Step.PLAN)
    story.end_process(0, summary("plan"))
    assert story.tell(StateKept(warning="it is nearly full")) == [ExecTerraform(Step.APPLY)]
    assert story.end(0, summary()).message.endswith("0 destroyed; it is nearly full")


def test_where_there_was_no_time_to_look_a_state_that_was_not_saved_is_not_called_lost() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.end_process(1, an_error("Failed to save state"))
    while story.run.result is None:
        story.wake()
    assert story.run.result.state is StateCondition.NOT_PERSISTED
    told = "terraform left it in errored.tfstate of this pod, and it could not be kept: there was no time for it"
    assert told in story.run.result.message


# ---- providers that are shared


def after_init(**fields: Any) -> Story:
    """What it has fetched is being shared."""
    story = Story(**fields)
    story.prepared = RunPrepared(shares_providers=True)
    story.tell(story.prepared)
    assert story.end_process(0) == [ShareProviders()]
    return story


def test_providers_are_shared_between_init_and_what_follows_it() -> None:
    story = after_init()
    assert story.tell(ProvidersShared()) == [ExecTerraform(Step.PLAN)]
    assert story.end_process(0, summary("plan")) == [KeepState()], "there is nothing new after a plan"
    plan = ApprovedPlan(run_id="01JPLAN", digest="d", summary=PlanSummary(add=1))
    approval = Approval(source=Source(inline={"main.tf": ""}), plan=plan)
    assert after_init(source=Source(), approval=approval).tell(ProvidersShared()) == [KeepState()]


def test_sharing_that_takes_too_long_is_given_up_and_the_run_goes_on() -> None:
    story = after_init()
    assert story.wait() == (TIMES.share_providers_s, [AbandonPreparation(), ExecTerraform(Step.PLAN)])
    assert story.tell(ProvidersShared()) == []


def test_after_a_cancel_nothing_is_shared_any_more_and_no_plan_is_made() -> None:
    story = after_init()
    assert story.cancel() == [AbandonPreparation(), Sweep()]
    assert story.tell(ProvidersShared()) == []
    story.tell(SweepEmptied(0))
    story.tell(OutputDrained())
    story.tell(AftermathChecked(FREE))
    assert story.run.result is not None
    assert story.run.result.outcome is Outcome.CANCELLED
    assert ExecTerraform(Step.PLAN) not in story.done


def test_of_an_init_that_failed_nothing_is_shared() -> None:
    story = Story()
    story.tell(RunPrepared(shares_providers=True))
    assert ShareProviders() not in story.end_process(1, an_error())
