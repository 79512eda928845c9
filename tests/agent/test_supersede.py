"""A cancel for the sake of a newer task: it ends a run before its apply, and never an apply."""

from __future__ import annotations

import pytest

from terrahalt_agent.core.classify import never_started
from terrahalt_agent.core.events import (
    CancelRequested,
    OfRun,
    OutputDrained,
    ProcessExited,
    RunEvent,
    RunPrepared,
    StateKept,
    SweepEmptied,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    AgentInstruction,
    CheckAftermath,
    ExecTerraform,
    ForRun,
    InterruptTerraform,
    KeepState,
    RunInstruction,
    SendReport,
    Sweep,
)
from terrahalt_agent.core.resources import superseded
from terrahalt_protocol.messages import Action, CancelReason, CancelReport, Outcome, Step
from tests.agent.builders import (
    RUN_ID,
    Story,
    begun,
    hook,
    interrupt_received,
    logged,
    operation_canceled,
    summary,
    version,
)
from tests.agent.test_agent import Life, a_report

PLANNING = (version(), hook("refresh_start"))
APPLYING = (version(), begun())
ENDED: tuple[RunEvent, ...] = (ProcessExited(0), SweepEmptied(0), OutputDrained())
MOMENTS = ("the plan is over", "it is swept", "its log is read")


def supersede(story: Story) -> list[RunInstruction]:
    cancel = CancelRequested(CancelReason.USER, cause=superseded("network-2"), spares_apply=True)
    return story.tell(cancel)


def test_a_plan_is_interrupted_and_the_task_ends_as_superseded_by_that_name() -> None:
    story = Story().in_step(Step.PLAN, *PLANNING)
    assert supersede(story) == [InterruptTerraform()]
    result = story.end(1, interrupt_received(), operation_canceled())
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "Superseded")
    assert result.message == "cancelled in terraform plan, which stopped after SIGINT; task network-2 takes its place"
    assert story.last.cancel is not None
    assert (story.last.cancel.reason, story.last.cancel.cause) == (CancelReason.USER, "Superseded")


def test_a_preparation_is_abandoned() -> None:
    story = Story()
    assert supersede(story) == [AbandonPreparation(), Sweep()]


def test_an_apply_goes_on_as_if_nothing_had_come_and_says_that_it_applies() -> None:
    story = Story().in_step(Step.APPLY, *APPLYING)
    told = len(story.reports)
    assert supersede(story) == []
    assert len(story.reports) == told + 1
    assert (story.last.step, story.last.cancel) == (Step.APPLY, None)
    result = story.end(0, summary())
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Applied")


def test_an_apply_that_ended_by_itself_is_looked_after_as_ever() -> None:
    story = Story().in_step(Step.APPLY, *APPLYING)
    story.end_process(0, summary())
    supersede(story)
    assert story.last.cancel is None


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_that_comes_before_the_apply_was_begun_keeps_it_from_beginning(moment: str) -> None:
    story = Story().in_step(Step.PLAN, *PLANNING, summary("plan"))
    done: list[RunInstruction] = []
    for name, event in zip(MOMENTS, ENDED, strict=True):
        done += story.tell(event)
        if name == moment:
            done += supersede(story)
    done += story.tell(StateKept())
    assert ExecTerraform(Step.APPLY) not in done
    assert any(isinstance(instruction, CheckAftermath) for instruction in done)


def test_one_that_comes_while_the_state_is_kept_for_the_apply_keeps_it_from_beginning() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.end_process(0, summary("plan")) == [KeepState()]
    supersede(story)
    assert ExecTerraform(Step.APPLY) not in story.tell(StateKept())


def test_one_that_comes_after_the_apply_was_begun_is_too_late_by_that_one_event() -> None:
    story = Story().in_step(Step.PLAN)
    story.end_process(0, summary("plan"))
    assert story.tell(StateKept()) == [ExecTerraform(Step.APPLY)]
    assert supersede(story) == []
    assert story.last.cancel is None


def test_a_person_can_still_cancel_an_apply_that_was_spared() -> None:
    story = Story().in_step(Step.APPLY, *APPLYING)
    supersede(story)
    assert story.cancel() == [InterruptTerraform()]
    assert story.end(1, interrupt_received(), operation_canceled()).reason == "CancelledByUser"


def test_a_task_that_only_plans_has_no_apply_to_be_spared() -> None:
    story = Story(action=Action.PLAN).in_step(Step.PLAN, *PLANNING)
    assert supersede(story) == [InterruptTerraform()]


def test_a_run_that_was_cancelled_already_keeps_its_first_reason() -> None:
    story = Story().in_step(Step.PLAN, *PLANNING)
    story.cancel()
    supersede(story)
    assert story.end(1, interrupt_received(), operation_canceled()).reason == "CancelledByUser"


def test_one_that_comes_before_its_run_leaves_a_tombstone_and_the_run_never_starts() -> None:
    life = Life()
    report = a_report(life.cancel(superseded_by="network-2"))
    assert report.result == never_started(CancelReason.USER, superseded("network-2"))
    assert report.result.reason == "Superseded"
    assert report.result.message == "cancelled before it was started: nothing ran; task network-2 takes its place"
    assert report.cancel is not None
    assert report.cancel.cause == "Superseded"
    assert a_report(life.start()).result == report.result


def test_the_command_of_the_operator_spares_an_apply_by_the_name_in_it_alone() -> None:
    life = Life()
    life.start()
    for step in (RunPrepared(), *ENDED, logged(summary("plan")), *ENDED, StateKept()):
        life.tell(OfRun(RUN_ID, step))
    assert cancel_told(life.cancel(superseded_by="network-2")) is None
    assert cancel_told(life.cancel()) is not None


def cancel_told(instructions: list[AgentInstruction]) -> CancelReport | None:
    done = [i.instruction for i in instructions if isinstance(i, ForRun)]
    (report,) = [i.report for i in done if isinstance(i, SendReport)]
    assert report.step is Step.APPLY
    return report.cancel
