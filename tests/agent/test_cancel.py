"""The ladder, rung by rung, in virtual time: what is done, after how long, and what is called what."""

from __future__ import annotations

import pytest

from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    OthersSeen,
    OutputDrained,
    ProcessExited,
    RunPrepared,
    StateKept,
    SweepEmptied,
    TerraformFrozen,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    CheckAftermath,
    DrainOutput,
    ExecTerraform,
    FreezeTerraform,
    InterruptTerraform,
    KillProviders,
    KillTerraform,
    Sweep,
    ThawTerraform,
)
from terrahalt_agent.core.terraform_log import Line
from terrahalt_protocol.messages import (
    Action,
    CancelMode,
    CancelReason,
    Outcome,
    Result,
    Rung,
    StateCondition,
    Step,
)
from tests.agent.builders import (
    ADDRESS,
    FREE,
    TIMES,
    Story,
    a_line,
    an_error,
    begun,
    completed,
    errored,
    hook,
    interrupt_received,
    logged,
    operation_canceled,
    summary,
    two_interrupts,
    version,
)

FORCE, GRACEFUL = CancelMode.FORCE, CancelMode.GRACEFUL


def outcome_of(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.reason


# -- before and between processes


def test_a_cancel_while_preparing_starts_nothing() -> None:
    story = Story()
    assert story.cancel() == [AbandonPreparation(), Sweep()]
    assert story.tell(RunPrepared()) == []
    assert story.tell(SweepEmptied(0)) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert outcome_of(story.run.result) == (Outcome.CANCELLED, "CancelledByUser")
    assert story.last.cancel is not None
    assert (story.last.cancel.rung, story.last.cancel.ages.signalled_s) == (Rung.NOT_STARTED, None)
    assert story.last.cancel.ages.swept_s == 0.0


@pytest.mark.parametrize("moment", [0, 1])
def test_a_cancel_between_plan_and_apply_never_starts_the_apply(moment: int) -> None:
    story = Story().in_step(Step.PLAN, summary("plan"))
    story.tell(ProcessExited(0))
    if moment == 1:
        story.tell(SweepEmptied(0))
    assert story.cancel() == []
    if moment == 0:
        assert story.tell(SweepEmptied(0)) == [DrainOutput()]
    assert story.tell(OutputDrained()) == [CheckAftermath()]
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert outcome_of(story.run.result) == (Outcome.CANCELLED, "CancelledByUser")
    assert story.run.result.message == "cancelled after terraform plan; the next step was not started"
    assert ExecTerraform(Step.APPLY) not in story.done


def test_a_plan_that_ends_well_under_a_cancel_is_not_applied() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.cancel() == [InterruptTerraform()]
    result = story.end(0, summary("plan"))
    assert outcome_of(result) == (Outcome.CANCELLED, "CancelledByUser")
    assert ExecTerraform(Step.APPLY) not in story.done


def test_a_plan_task_whose_plan_ends_well_under_a_cancel_has_succeeded() -> None:
    story = Story(action=Action.PLAN).in_step(Step.PLAN)
    story.cancel()
    assert outcome_of(story.end(0, summary("plan"))) == (Outcome.SUCCEEDED, "Planned")
    assert story.last.cancel is not None


# -- the rungs


def test_an_apply_is_interrupted_at_once_after_its_first_operation() -> None:
    story = Story().in_step(Step.APPLY, version(), begun())
    assert story.cancel() == [InterruptTerraform()]
    assert story.last.message == "cancelling: SIGINT sent, waiting up to 300 s for terraform to stop and save its state"
    result = story.end(1, interrupt_received(), errored(), an_error("execution halted"))
    assert outcome_of(result) == (Outcome.CANCELLED, "CancelledByUser")
    assert (result.state, result.forced, result.open_addresses) == (StateCondition.COMPLETE, False, ())


def test_the_whole_ladder_of_an_apply_that_never_stops() -> None:
    story = Story(cancel_grace_s=30).in_step(Step.APPLY, begun())
    assert story.cancel() == [InterruptTerraform()]
    assert story.wait() == (30.0, [KillProviders()])
    assert story.wait() == (10.0, [InterruptTerraform()])
    assert story.wait() == (8.0, [KillTerraform()])
    assert story.wait() == (5.0, [Sweep()])
    assert story.last.cancel is not None
    assert story.last.cancel.rung is Rung.KILL
    story.tell(ProcessExited(-9))
    story.tell(SweepEmptied(1))
    story.tell(OutputDrained())
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert outcome_of(story.run.result) == (Outcome.CANCELLED, "CancelledByUser")
    assert story.run.result.state is StateCondition.INCOMPLETE
    assert (story.run.result.forced, story.run.result.open_addresses) == (True, (ADDRESS,))


def test_a_plan_has_20_seconds_and_init_30_and_no_second_signal() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.cancel() == [InterruptTerraform()]
    assert [story.wait() for _ in range(3)] == [
        (20.0, [KillProviders()]),
        (10.0, [InterruptTerraform()]),
        (8.0, [KillTerraform()]),
    ]
    story = Story().in_step(Step.INIT)
    assert story.cancel() == [InterruptTerraform()]
    assert story.wait() == (30.0, [KillTerraform()])


@pytest.mark.parametrize("step", [Step.INIT, Step.PLAN])
def test_no_step_gets_more_than_the_tasks_grace(step: Step) -> None:
    story = Story(cancel_grace_s=5).in_step(step)
    story.cancel()
    assert story.wait()[0] == 5.0


def test_two_seconds_are_enough_once_terraform_gives_up() -> None:
    story = Story(cancel_grace_s=1).in_step(Step.APPLY, begun())
    story.cancel()
    story.wait()
    assert story.wait() == (10.0, [InterruptTerraform()])
    story.tell(logged(two_interrupts(), operation_canceled()), after_s=1.0)
    assert story.wait() == (2.0, [KillTerraform()])


# -- the gate


@pytest.mark.parametrize("kind", ["apply_start", "refresh_start", "ephemeral_op_start", "provision_start"])
def test_before_the_graph_walk_sigint_is_held_until_its_first_event(kind: str) -> None:
    story = Story().in_step(Step.APPLY, version())
    assert story.cancel() == []
    assert story.last.cancel is not None
    assert (story.last.cancel.rung, story.last.cancel.ages.signalled_s) == (Rung.GATE, None)
    assert story.tell(logged(hook(kind)), after_s=3.0) == []
    assert story.wait() == (0.125, [InterruptTerraform()])
    assert story.last.cancel is not None
    assert (story.last.cancel.ages.received_s, story.last.cancel.ages.signalled_s) == (3.125, 0.0)


def test_sigint_waits_until_no_operation_was_begun_for_an_eighth_of_a_second() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(logged(begun("terraform_data.b")))
    assert story.tell(CancelRequested(CancelReason.USER), after_s=0.0625) == []
    assert story.last.cancel is not None
    assert story.last.cancel.rung is Rung.GATE
    assert story.tell(logged(begun("terraform_data.c")), after_s=0.03125) == []
    assert story.tell(logged(completed("terraform_data.b")), after_s=0.03125) == []
    assert story.wait() == (0.09375, [InterruptTerraform()])
    assert story.wait() == (300.0, [KillProviders()])


def test_sigint_waits_a_second_at_most_for_operations_that_begin_all_the_time() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.cancel()
    story.tell(logged(begun("terraform_data.first")), after_s=2.0)
    for number in range(19):
        assert story.tell(logged(begun(f"terraform_data.r{number}")), after_s=0.05) == []
    assert story.wait() == (0.05, [InterruptTerraform()])


def test_plan_and_init_have_no_gate() -> None:
    assert Story().in_step(Step.PLAN).cancel() == [InterruptTerraform()]
    assert Story().in_step(Step.INIT).cancel() == [InterruptTerraform()]


def test_an_apply_that_ends_inside_of_the_gate_keeps_its_true_result() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.cancel()
    assert outcome_of(story.end(0, summary())) == (Outcome.SUCCEEDED, "Applied")


def test_a_gate_that_never_opens_ends_in_a_frozen_look_and_a_clean_kill() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.cancel()
    assert story.wait() == (60.0, [FreezeTerraform()])
    assert story.tell(TerraformFrozen()) == [KillTerraform()]
    result = story.end(-9)
    assert outcome_of(result) == (Outcome.CANCELLED, "CancelledByUser")
    assert (result.state, result.open_addresses, result.forced) == (StateCondition.COMPLETE, (), False)


def test_what_began_just_before_the_freeze_is_interrupted_not_killed() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.cancel()
    story.wait()
    assert story.tell(logged(begun())) == []
    assert story.tell(TerraformFrozen()) == [ThawTerraform()]
    assert story.wait() == (0.125, [InterruptTerraform()])
    assert story.wait() == (300.0, [KillProviders()])


def test_a_freeze_that_never_answers_is_decided_without_it() -> None:
    story = Story().in_step(Step.APPLY)
    story.cancel()
    story.wait()
    assert story.wait() == (2.0, [KillTerraform()])


# -- the gate where a lock that is left can be released: it decides at once


@pytest.mark.parametrize("step", [Step.PLAN, Step.APPLY])
@pytest.mark.parametrize("mode", list(CancelMode))
def test_before_its_first_operation_terraform_is_killed_at_once_and_nothing_is_forced(
    step: Step, mode: CancelMode
) -> None:
    story = Story(frees_locks=True).in_step(step, version())
    assert story.cancel(mode) == [FreezeTerraform()]
    assert story.tell(TerraformFrozen(has_lock=True)) == [KillTerraform()]
    result = story.end(-9)
    assert outcome_of(result) == (Outcome.CANCELLED, "CancelledByUser")
    assert (result.state, result.open_addresses, result.forced) == (StateCondition.COMPLETE, (), False)
    name = f"terraform {step.value.lower()}"
    assert result.message == f"cancelled in {name} before its first operation: it was killed, and nothing was changed"
    assert story.last.cancel is not None
    assert story.last.cancel.rung is Rung.KILL


@pytest.mark.parametrize("step", [Step.PLAN, Step.APPLY])
def test_one_that_has_begun_by_the_time_it_stands_still_goes_on_to_its_sigint(step: Step) -> None:
    story = Story(frees_locks=True).in_step(step, version())
    assert story.cancel() == [FreezeTerraform()]
    story.tell(logged(hook("refresh_start")))
    assert story.tell(TerraformFrozen()) == [ThawTerraform()]
    assert story.wait() == (0.125, [InterruptTerraform()])


def test_one_that_has_begun_is_not_frozen() -> None:
    assert Story(frees_locks=True).in_step(Step.APPLY, begun()).cancel() == [InterruptTerraform()]
    assert Story(frees_locks=True).in_step(Step.PLAN, hook("refresh_start")).cancel() == [InterruptTerraform()]


def test_an_apply_without_operations_is_not_killed_it_may_be_writing_its_state() -> None:
    story = Story(frees_locks=True).in_step(Step.PLAN)
    nothing = a_line("change_summary", "Plan: 0 to add", changes={"add": 0, "change": 0, "remove": 0})
    story.end_process(0, nothing)
    assert story.tell(StateKept()) == [ExecTerraform(Step.APPLY)]
    assert story.cancel() == []
    assert story.wait() == (60.0, [FreezeTerraform()])


def test_a_plan_that_is_made_is_not_killed() -> None:
    assert Story(frees_locks=True).in_step(Step.PLAN, summary("plan")).cancel() == [InterruptTerraform()]


def test_an_exit_while_it_is_frozen_counts_as_it_is() -> None:
    story = Story(frees_locks=True).in_step(Step.APPLY, version())
    story.cancel()
    assert outcome_of(story.end(0, summary())) == (Outcome.SUCCEEDED, "Applied")
    assert KillTerraform() not in story.done


def test_a_cancel_while_the_state_is_copied_waits_for_nothing_and_starts_nothing() -> None:
    story = Story().in_step(Step.PLAN)
    story.end_process(0, summary("plan"))
    assert story.cancel() == [CheckAftermath()]
    assert story.tell(StateKept()) == []
    story.tell(AftermathChecked(FREE))
    assert story.run.result is not None
    assert outcome_of(story.run.result) == (Outcome.CANCELLED, "CancelledByUser")
    assert ExecTerraform(Step.APPLY) not in story.done


# -- a lock that is granted to a dead terraform


@pytest.mark.parametrize(
    ("lines", "has_lock", "again_after_s"),
    [
        ((), False, None),
        ((version(),), False, 5.0),
        ((version(),), True, None),
    ],
)
def test_the_lock_is_looked_at_again_where_its_request_may_outlive_terraform(
    lines: tuple[Line, ...], has_lock: bool, again_after_s: float | None
) -> None:
    story = Story(frees_locks=True).in_step(Step.APPLY, *lines)
    story.cancel()
    story.tell(TerraformFrozen(has_lock=has_lock))
    assert story.end_process(-9) == [CheckAftermath(True, again_after_s)]


def test_the_lock_of_one_that_was_killed_at_work_is_looked_at_once() -> None:
    story = Story().in_step(Step.APPLY, version(), begun())
    assert story.end_process(-9) == [CheckAftermath(True, reads_state=True)]


def test_the_lock_of_one_that_ended_by_itself_is_looked_at_once() -> None:
    assert Story().in_step(Step.PLAN, version()).end_process(1, an_error()) == [CheckAftermath()]


# -- Force, and cancels that come again


def test_force_interrupts_and_kills_the_providers_at_once() -> None:
    story = Story().in_step(Step.APPLY, begun())
    assert story.cancel(FORCE) == [InterruptTerraform(), KillProviders()]
    assert story.wait() == (10.0, [InterruptTerraform()])
    story = Story().in_step(Step.PLAN)
    assert story.cancel(FORCE) == [InterruptTerraform(), KillProviders()]


def test_force_kills_init_at_once() -> None:
    story = Story().in_step(Step.INIT)
    assert story.cancel(FORCE) == [KillTerraform()]
    assert outcome_of(story.end(-9)) == (Outcome.CANCELLED, "CancelledByUser")


def test_force_holds_sigint_for_five_seconds_only() -> None:
    story = Story().in_step(Step.APPLY)
    assert story.cancel(FORCE) == []
    assert story.wait() == (5.0, [FreezeTerraform()])


def test_force_in_the_gate_climbs_with_the_first_event() -> None:
    story = Story().in_step(Step.APPLY)
    story.cancel(FORCE)
    assert story.tell(logged(begun())) == [InterruptTerraform(), KillProviders()]


def test_force_after_graceful_climbs_at_once() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.cancel()
    story.now_s += 10
    assert story.cancel(FORCE) == [KillProviders()]
    assert story.last.cancel is not None
    assert (story.last.cancel.mode, story.last.cancel.ages.received_s) == (FORCE, 10.0)


def test_graceful_after_force_does_not_climb_down() -> None:
    story = Story().in_step(Step.INIT)
    story.cancel()
    assert story.cancel(FORCE) == [KillTerraform()]
    assert story.cancel(GRACEFUL) == []
    assert story.last.cancel is not None
    assert story.last.cancel.mode is FORCE


def test_the_same_cancel_again_is_no_second_ladder() -> None:
    story = Story().in_step(Step.APPLY, begun())
    assert story.cancel() == [InterruptTerraform()]
    story.now_s += 100
    assert story.cancel() == []
    assert story.cancel(reason=CancelReason.POD_TERMINATION) == []
    assert story.wait() == (200.0, [KillProviders()])
    assert story.last.cancel is not None
    assert story.last.cancel.reason is CancelReason.USER


def test_a_shorter_grace_takes_effect_at_once_and_a_longer_one_never() -> None:
    story = Story(cancel_grace_s=100).in_step(Step.APPLY, begun())
    story.cancel(grace_s=500)
    story.now_s += 20
    assert story.cancel(grace_s=50) == []
    assert story.wait() == (30.0, [KillProviders()])
    story = Story(cancel_grace_s=100).in_step(Step.APPLY, begun())
    story.cancel()
    story.now_s += 20
    assert story.cancel(grace_s=10) == [KillProviders()]


# -- an apply that is saving its state


def test_providers_are_not_killed_while_the_state_is_being_saved() -> None:
    story = Story(cancel_grace_s=30).in_step(Step.APPLY, begun())
    story.cancel()
    story.tell(logged(interrupt_received(), errored()))
    story.tell(OthersSeen(0))
    assert story.wait() == (48.0, [KillTerraform()])
    assert KillProviders() not in story.done


@pytest.mark.parametrize("mode", [GRACEFUL, FORCE])
def test_a_provider_that_does_not_close_is_killed_although_no_operation_is_open(mode: CancelMode) -> None:
    story = Story(cancel_grace_s=30).in_step(Step.APPLY, begun())
    story.cancel()
    story.tell(logged(interrupt_received(), errored()))
    story.tell(OthersSeen(1))
    assert (story.cancel(FORCE) if mode is FORCE else story.wait()[1]) == [KillProviders()]
    story.tell(OthersSeen(0))
    assert story.wait() == (18.0, [KillTerraform()])


def test_what_is_begun_again_ends_the_patience() -> None:
    story = Story(cancel_grace_s=30).in_step(Step.APPLY, begun(), completed())
    story.cancel()
    story.tell(OthersSeen(0))
    story.tell(logged(begun("terraform_data.b")), after_s=40.0)
    assert story.wait() == (-10.0, [KillProviders()])


def test_no_second_sigint_while_the_state_is_being_saved() -> None:
    story = Story(cancel_grace_s=1).in_step(Step.APPLY, begun())
    story.cancel()
    assert story.wait() == (1.0, [KillProviders()])
    story.tell(logged(errored()))
    story.tell(OthersSeen(0))
    assert story.wait() == (18.0, [KillTerraform()])


def test_sigint_waits_while_an_operation_is_still_worked_on() -> None:
    story = Story().in_step(Step.APPLY)
    story.cancel()
    story.tell(logged(begun()))
    story.tell(OthersSeen(1, is_busy=True), after_s=0.1)
    assert story.wait() == (TIMES.settle_s, [InterruptTerraform()])


def test_work_that_never_ends_holds_sigint_up_for_a_second_at_most() -> None:
    story = Story().in_step(Step.APPLY)
    story.cancel()
    story.tell(logged(begun()))
    for _ in range(9):
        story.tell(OthersSeen(1, is_busy=True), after_s=0.1)
    waited_s, todo = story.wait()
    assert (round(0.9 + waited_s, 6), todo) == (TIMES.settle_max_s, [InterruptTerraform()])


def test_a_cancel_soon_after_a_begin_waits_if_it_was_still_worked_on() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(OthersSeen(1, is_busy=True))
    story.cancel()
    assert story.wait() == (TIMES.settle_s, [InterruptTerraform()])


def test_a_busy_provider_of_a_long_operation_holds_nothing_up() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(OthersSeen(1, is_busy=True), after_s=5.0)
    story.tell(OthersSeen(1, is_busy=True))
    assert InterruptTerraform() in story.cancel()


# -- ends that are no cancel


def test_a_timeout_climbs_the_same_ladder_and_is_a_failure() -> None:
    story = Story(timeout_s=100).in_step(Step.APPLY, begun())
    assert story.wait() == (100.0 - TIMES.settle_s, [InterruptTerraform()])
    result = story.end(1, interrupt_received())
    assert outcome_of(result) == (Outcome.FAILED, "TimedOut")
    assert result.message == "timed out in terraform apply, which stopped after SIGINT"
    assert story.last.cancel is not None
    assert story.last.cancel.reason is CancelReason.TIMEOUT


def test_a_timeout_counts_the_preparation_too() -> None:
    story = Story(timeout_s=10)
    assert story.wait() == (10.0, [AbandonPreparation(), Sweep()])


def test_what_ends_well_at_its_timeout_has_succeeded() -> None:
    story = Story(timeout_s=10).in_step(Step.APPLY, begun())
    story.wait()
    assert outcome_of(story.end(0, summary())) == (Outcome.SUCCEEDED, "Applied")


def test_after_a_cancel_the_timeout_has_no_say() -> None:
    story = Story(timeout_s=100).in_step(Step.APPLY, begun())
    story.cancel()
    assert story.wait() == (300.0, [KillProviders()])
    assert story.last.cancel is not None
    assert story.last.cancel.reason is CancelReason.USER


def test_an_error_before_the_cancel_is_a_failure_whatever_comes_then() -> None:
    story = Story().in_step(Step.APPLY, begun(), begun("terraform_data.b"), errored())
    story.cancel()
    result = story.end(1, interrupt_received(), errored("terraform_data.b"), an_error("it broke"))
    assert outcome_of(result) == (Outcome.FAILED, "ApplyFailed")
    assert story.last.cancel is not None


def test_the_ages_of_a_cancel_are_those_of_the_moment_of_the_report() -> None:
    story = Story().in_step(Step.APPLY)
    story.cancel()
    story.tell(logged(begun()), after_s=0.875)
    assert story.wait() == (0.125, [InterruptTerraform()])
    story.tell(ProcessExited(1), after_s=2.0)
    story.tell(SweepEmptied(0), after_s=3.0)
    story.tell(logged(interrupt_received()))
    story.tell(OutputDrained())
    story.tell(AftermathChecked(FREE, None), after_s=4.0)
    assert story.last.cancel is not None
    ages = story.last.cancel.ages
    assert (ages.received_s, ages.signalled_s, ages.exited_s, ages.swept_s) == (10.0, 9.0, 7.0, 4.0)
