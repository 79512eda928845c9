"""The timeouts in virtual time: which comes when, that it is the ladder of a cancel, and what it is called."""

from __future__ import annotations

import pytest

from terrahalt_agent.core.events import OutputDrained, ProcessExited, RunPrepared, StateKept, SweepEmptied, TimePassed
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    ExecTerraform,
    InterruptTerraform,
    KillProviders,
    KillTerraform,
    Sweep,
)
from terrahalt_agent.core.ladder import Times
from terrahalt_protocol import budget
from terrahalt_protocol.messages import CancelReason, Outcome, Rung, Step
from tests.agent.builders import (
    RUN_ID,
    Story,
    a_line,
    an_error,
    begun,
    completed,
    interrupt_received,
    lock_not_acquired,
    logged,
    summary,
    version,
)

HEARTBEATS = ["apply_progress", "ephemeral_op_progress", "ephemeral_action_progress"]


def cause(story: Story) -> CancelReason:
    assert story.last.cancel is not None
    return story.last.cancel.reason


# -- no output


@pytest.mark.parametrize("step", [Step.INIT, Step.PLAN])
def test_silence_since_the_start_of_a_step_climbs_the_ladder(step: Step) -> None:
    story = Story(no_output_timeout_s=60).in_step(step)
    assert story.wait() == (60.0, [InterruptTerraform()])
    assert cause(story) is CancelReason.TIMEOUT
    result = story.end(1, interrupt_received())
    assert (result.outcome, result.reason) == (Outcome.FAILED, "NoOutputTimedOut")
    text = f"timed out (60 s without output) in terraform {step.value.lower()}, which stopped after SIGINT"
    assert result.message == text


def test_every_line_begins_the_wait_anew() -> None:
    story = Story(no_output_timeout_s=60).in_step(Step.PLAN)
    for line in (version(), a_line("log", "x"), a_line("")):
        assert story.tell(logged(line), after_s=59.0) == []
    assert story.wait() == (60.0, [InterruptTerraform()])


@pytest.mark.parametrize("kind", HEARTBEATS)
def test_terraforms_own_clock_is_no_output(kind: str) -> None:
    story = Story(no_output_timeout_s=60).in_step(Step.PLAN, version())
    begun_s = story.now_s
    for _ in range(5):
        story.tell(logged(a_line(kind, "Still creating... [10s elapsed]")), after_s=10.0)
    waited_s, wanted = story.wait()
    assert (round(story.now_s - begun_s, 3), wanted) == (60.0 - Times().settle_s, [InterruptTerraform()])
    assert waited_s < 10.0


def test_a_silent_apply_before_its_first_operation_is_gated_like_any_other() -> None:
    story = Story(no_output_timeout_s=60).in_step(Step.APPLY)
    assert story.wake() == (60.0, [])
    assert story.last.cancel is not None
    assert story.last.cancel.rung is Rung.GATE


def test_between_two_processes_silence_is_nobodys() -> None:
    story = Story(no_output_timeout_s=5).in_step(Step.PLAN)
    story.tell(ProcessExited(0))
    assert story.tell(TimePassed(), after_s=9.0) == []
    story.tell(SweepEmptied(0))
    assert story.tell(TimePassed(), after_s=9.0) == []
    story.tell(logged(summary("plan")))
    story.tell(OutputDrained())
    assert story.tell(StateKept(), after_s=9.0) == [ExecTerraform(Step.APPLY)]
    assert story.wake() == (5.0, [])
    assert cause(story) is CancelReason.TIMEOUT


# -- init


def test_an_init_that_takes_too_long_is_ended_by_its_own_two_rungs_however_much_it_says() -> None:
    story = Story(init_timeout_s=90, no_output_timeout_s=60)
    story.tell(RunPrepared(), after_s=1000.0)
    assert story.tell(logged(a_line("")), after_s=45.0) == []
    assert story.wait() == (45.0, [InterruptTerraform()])
    assert story.wait() == (30.0, [KillTerraform()])
    result = story.end(-9)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "InitTimedOut")
    assert result.message == "timed out (90 s for init) in terraform init, which had to be killed"


def test_an_init_that_ends_well_at_its_timeout_is_followed_by_nothing() -> None:
    story = Story(init_timeout_s=90).in_step(Step.INIT)
    story.wait()
    result = story.end(0)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "InitTimedOut")
    assert result.message == "timed out (90 s for init) after terraform init; the next step was not started"
    assert ExecTerraform(Step.PLAN) not in story.done


def test_the_timeout_of_init_is_no_other_steps() -> None:
    story = Story(init_timeout_s=9, timeout_s=100).in_step(Step.PLAN)
    assert story.wait() == (100.0, [InterruptTerraform()])
    assert story.end(1, interrupt_received()).reason == "TimedOut"


# -- before the run, and together


def test_preparing_counts_for_the_whole_run_only() -> None:
    story = Story(init_timeout_s=1, no_output_timeout_s=1, timeout_s=100)
    assert story.wait() == (100.0, [AbandonPreparation(), Sweep()])


def test_the_timeout_that_comes_first_names_the_end_and_there_is_one_ladder() -> None:
    story = Story(timeout_s=100, no_output_timeout_s=99, cancel_grace_s=300).in_step(Step.APPLY, begun(), completed())
    assert story.tell(logged(begun("terraform_data.b")), after_s=1.0) == []
    assert story.wait()[1] == [InterruptTerraform()]
    assert story.wait() == (300.0, [KillProviders()])
    assert story.end(1, interrupt_received()).reason == "TimedOut"


def test_a_cancel_after_a_timeout_shortens_its_ladder_and_names_nothing() -> None:
    story = Story(no_output_timeout_s=60, cancel_grace_s=300).in_step(Step.APPLY, begun())
    story.wait()
    assert story.cancel(grace_s=10) == []
    assert story.wait() == (10.0, [KillProviders()])
    assert cause(story) is CancelReason.TIMEOUT
    result = story.end(1, interrupt_received())
    assert (result.outcome, result.reason) == (Outcome.FAILED, "NoOutputTimedOut")


def test_after_a_cancel_no_timeout_has_a_say() -> None:
    story = Story(no_output_timeout_s=60, init_timeout_s=60, timeout_s=60).in_step(Step.INIT)
    story.cancel()
    assert story.wait() == (30.0, [KillTerraform()])
    assert story.done.count(InterruptTerraform()) == 1
    assert story.end(-9).reason == "CancelledByUser"


# -- the state's lock


@pytest.mark.parametrize("step", [Step.PLAN, Step.APPLY])
def test_a_lock_that_was_not_free_in_time_is_a_reason_of_its_own_and_names_its_holder(step: Step) -> None:
    result = Story(lock_timeout_s=7).in_step(step).end(1, version(), lock_not_acquired())
    assert (result.outcome, result.reason) == (Outcome.FAILED, "LockTimedOut")
    assert result.message == (
        f"terraform {step.value.lower()} waited 7 s for the state's lock, which is held by somebody@else "
        "since 2026-01-02 03:04:05 UTC (ID 57904ab3)"
    )


def test_a_lock_error_that_names_no_lock_is_the_steps_own_failure() -> None:
    error = an_error("Error acquiring the state lock", detail="Error message: leases is forbidden")
    result = Story().in_step(Step.PLAN).end(1, error)
    assert (result.reason, result.message) == (
        "PlanFailed",
        "terraform plan: Error acquiring the state lock: Error message: leases is forbidden",
    )


def test_a_backend_that_shows_our_own_attempt_names_nobody() -> None:
    result = Story().in_step(Step.PLAN).end(1, lock_not_acquired(f"{RUN_ID}@agent-0"))
    assert result.reason == "LockTimedOut"
    assert result.message.endswith("held by somebody whom the backend does not name")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_wait_for_the_lock_that_was_cancelled_is_cancelled_in_whatever_order_terraform_says_it(
    is_first: bool,
) -> None:
    lines = [interrupt_received(), lock_not_acquired()]
    story = Story().in_step(Step.PLAN, version())
    story.cancel()
    result = story.end(1, *(lines if is_first else lines[::-1]))
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")


def test_a_lock_that_terraform_gave_up_before_the_cancel_is_what_it_failed_of() -> None:
    story = Story().in_step(Step.PLAN, lock_not_acquired())
    story.cancel()
    assert story.end(1, interrupt_received()).reason == "LockTimedOut"


# -- the budget


def test_the_ladder_takes_what_the_formula_says_it_does() -> None:
    grace_s = 40
    story = Story(cancel_grace_s=grace_s).in_step(Step.APPLY)
    asked_s = story.now_s
    story.cancel()
    story.tell(logged(begun()), after_s=budget.GATE_S - Times().settle_s)
    while Sweep() not in story.done[-3:]:
        story.wait()
    assert story.now_s - asked_s == budget.pod_grace_s(grace_s) - budget.RESERVE_S
