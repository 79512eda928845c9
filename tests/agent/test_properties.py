"""Whatever comes in whatever order: a cancelled run ends in bounded time, once, and after its sweep."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    ErroredState,
    ExecFailed,
    LinesLogged,
    OthersSeen,
    OutputDrained,
    PreparationFailed,
    ProcessExited,
    ResourcesSeen,
    RunEvent,
    RunPrepared,
    StateKept,
    SweepEmptied,
    SweepStalled,
    TerraformFrozen,
    TimePassed,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    ExecTerraform,
    FreezeTerraform,
    InterruptTerraform,
    KillProviders,
    KillTerraform,
    LeaveToKernel,
    SendReport,
    Sweep,
    WriteTerminationMessage,
)
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.resources import Disk, Memory
from terrahalt_protocol.messages import Action, CancelMode, CancelReason, Outcome, Step
from tests.agent.builders import (
    FREE,
    Story,
    an_error,
    begun,
    completed,
    errored,
    interrupt_received,
    operation_canceled,
    summary,
    two_interrupts,
    version,
)

_TIMES = Times()
_LINES = st.sampled_from(
    [
        version(),
        begun(),
        begun("terraform_data.b"),
        completed(),
        errored(),
        summary(),
        an_error(),
        interrupt_received(),
        two_interrupts(),
        operation_canceled(),
    ]
)
_CANCELS = st.builds(
    CancelRequested,
    st.sampled_from(list(CancelReason)),
    st.sampled_from(list(CancelMode)),
    st.none() | st.floats(0, 400),
)
_EVENTS: st.SearchStrategy[RunEvent] = st.one_of(
    st.builds(RunPrepared, st.just(""), st.booleans()),
    st.builds(PreparationFailed, st.just("SourceInvalid"), st.just("no")),
    st.builds(ExecFailed, st.just("no")),
    st.builds(LinesLogged, st.lists(_LINES, max_size=4).map(tuple)),
    st.builds(OthersSeen, st.integers(0, 2)),
    st.builds(TerraformFrozen, st.booleans()),
    st.builds(ProcessExited, st.sampled_from([0, 1, 2, 11, -2, -9, -11])),
    st.builds(SweepEmptied, st.integers(0, 3)),
    st.builds(SweepStalled, st.just((7,))),
    st.builds(OutputDrained, st.booleans()),
    st.builds(AftermathChecked, st.just(FREE), st.none() | st.just(ErroredState("/module/errored.tfstate"))),
    st.builds(StateKept, st.sampled_from(["", "no API server"])),
    _CANCELS,
    st.builds(
        ResourcesSeen,
        st.none() | st.builds(Memory, st.integers(0, 100), st.just(100)),
        st.none() | st.builds(Disk, st.integers(0, 100), st.integers(0, 100)),
    ),
    st.just(TimePassed()),
)
_HISTORY = st.lists(st.tuples(_EVENTS, st.floats(0, 30)), max_size=30)
_STORIES = st.builds(
    Story,
    action=st.sampled_from(list(Action)),
    cancel_grace_s=st.integers(0, 600),
    timeout_s=st.integers(1, 5000),
    no_output_timeout_s=st.none() | st.integers(1, 100),
    init_timeout_s=st.none() | st.integers(1, 100),
)


def _bound_s(story: Story) -> float:
    """Of everything after a cancel; the sweep's and the adapters' worst cases are in it."""
    times = _TIMES
    ladder_s = times.gate_s + times.freeze_s + story.run.start.cancel_grace_s + times.kill_providers_s
    ladder_s += times.second_interrupt_s + times.kill_s
    sweeps_s = times.sweeps * (times.sweep_s + times.backstop_s)
    return ladder_s + sweeps_s + times.drain_s + times.aftermath_s + 2 * times.backstop_s


def _until_its_end(story: Story) -> float:
    """Only time passes: no process exits, no adapter answers, the worst of all worlds."""
    begun_s = story.now_s
    for _ in range(500):
        if story.run.wake_at_s is None:
            return story.now_s - begun_s
        story.now_s = max(story.now_s, story.run.wake_at_s)
        story.tell(TimePassed())
    raise AssertionError("the run wakes up again and again, and never ends")


@settings(max_examples=400)
@given(story=_STORIES, history=_HISTORY)
def test_after_a_cancel_every_run_ends_in_bounded_time_even_if_nothing_answers(
    story: Story, history: list[tuple[RunEvent, float]]
) -> None:
    for event, after_s in history:
        story.tell(event, after_s)
    story.cancel()
    assert _until_its_end(story) <= _bound_s(story)
    assert story.run.result is not None


@settings(max_examples=400)
@given(story=_STORIES, history=_HISTORY)
def test_a_result_comes_once_and_only_after_an_empty_sweep(story: Story, history: list[tuple[RunEvent, float]]) -> None:
    seen: list[object] = []
    for event, after_s in [*history, (CancelRequested(CancelReason.USER), 0.0)]:
        seen.append(event)
        seen += story.tell(event, after_s)
        seen += [report for report in story.reports[-3:] if report.result is not None]
    _until_its_end(story)
    finals = [i for i in story.done if isinstance(i, SendReport) and i.report.result is not None]
    written = [i for i in story.done if isinstance(i, WriteTerminationMessage)]
    left = [i for i in story.done if isinstance(i, LeaveToKernel)]
    assert len(written) == 1
    assert len(finals) + len(left) == 1
    if finals:
        last_exec = max((n for n, what in enumerate(seen) if isinstance(what, ExecTerraform)), default=-1)
        assert any(isinstance(what, SweepEmptied) for what in seen[last_exec + 1 :])


@settings(max_examples=400)
@given(story=_STORIES, before=_HISTORY, cancel=_CANCELS, after=_HISTORY)
def test_nothing_is_started_after_a_cancel(
    story: Story, before: list[tuple[RunEvent, float]], cancel: CancelRequested, after: list[tuple[RunEvent, float]]
) -> None:
    for event, after_s in before:
        story.tell(event, after_s)
    story.tell(cancel)
    told = len(story.done)
    for event, after_s in after:
        story.tell(event, after_s)
    assert not any(isinstance(instruction, ExecTerraform) for instruction in story.done[told:])


@settings(max_examples=400)
@given(story=_STORIES, history=_HISTORY)
def test_each_step_starts_once_and_in_order(story: Story, history: list[tuple[RunEvent, float]]) -> None:
    for event, after_s in history:
        story.tell(event, after_s)
    steps = [instruction.step for instruction in story.done if isinstance(instruction, ExecTerraform)]
    assert steps == [Step.INIT, Step.PLAN, Step.APPLY][: len(steps)]
    if story.run.start.action is Action.PLAN:
        assert Step.APPLY not in steps


@settings(max_examples=400)
@given(story=_STORIES, history=_HISTORY)
def test_no_process_is_touched_unless_somebody_asked_for_the_end(
    story: Story, history: list[tuple[RunEvent, float]]
) -> None:
    signals = (InterruptTerraform, KillProviders, KillTerraform, FreezeTerraform, AbandonPreparation)
    for event, after_s in history:
        told = len(story.done)
        story.tell(event, after_s)
        if story.last.cancel is None:
            assert not any(isinstance(instruction, signals) for instruction in story.done[told:])
    if story.run.result is not None and story.last.cancel is None:
        assert story.run.result.outcome is not Outcome.CANCELLED


@settings(max_examples=200)
@given(story=_STORIES, history=_HISTORY)
def test_every_exit_is_followed_by_a_sweep(story: Story, history: list[tuple[RunEvent, float]]) -> None:
    is_running = False
    for event, after_s in history:
        wanted = story.tell(event, after_s)
        if is_running and isinstance(event, ProcessExited):
            assert Sweep() in wanted
        if any(isinstance(instruction, ExecTerraform) for instruction in wanted):
            is_running = True
        if any(isinstance(instruction, Sweep) for instruction in wanted):
            is_running = False
