"""Outputs of an apply: what of them a Secret gets, over which Secret they are never written, and that nothing of it
changes the result."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_agent.adapters.cluster_api import ClusterApi
from terrahalt_agent.adapters.outputs import PublishedSecrets
from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    ErroredState,
    OutputsPublished,
    PlanKept,
    StateKept,
    SweepEmptied,
    SweepStalled,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    LeaveToKernel,
    PublishOutputs,
    Sweep,
    WriteTerminationMessage,
)
from terrahalt_agent.core.outputs import Outputs, OutputsError, read
from terrahalt_protocol.kept_secret import MAX_BYTES
from terrahalt_protocol.messages import (
    Action,
    Approval,
    ApprovedPlan,
    CancelReason,
    Outcome,
    OutputsTo,
    PlanSummary,
    PublishedOutputs,
    Result,
    Source,
    StateCondition,
    Step,
    Values,
)
from tests.agent.builders import (
    FREE,
    TIMES,
    Story,
    a_start,
    an_error,
    begun,
    completed,
    interrupt_received,
    operation_canceled,
    summary,
)
from tests.agent.fake_api import FakeApi, a_fake_api, asking

TO = OutputsTo(secret="network-outputs")
VALUES = Values(source=Source(inline={"main.tf": ""}), outputs_to=TO)


def said(**outputs: Any) -> str:
    return json.dumps({name: {"sensitive": False, "value": value} for name, value in outputs.items()})


# ---- what of them a Secret gets


def test_text_is_there_as_it_is_and_all_else_as_json() -> None:
    found = read(said(a='two\n"lines"', b=[1, {"c": None}], d=True, e="ü"), include_sensitive=False)
    assert found == Outputs(
        {"a": b'two\n"lines"', "b": b'[1,{"c":null}]', "d": b"true", "e": "ü".encode()}, left_out=()
    )


def test_numbers_keep_their_digits_and_what_stands_around_the_outputs_is_passed_over() -> None:
    text = 'Warning: no\n{"a": {"value": [ 123456789012345678901234567890, 0.10 ]}}\n\nWarning: deprecated {\n'
    found = read(text, include_sensitive=False)
    assert found.values == {"a": b"[123456789012345678901234567890,0.10]"}


def test_sensitive_ones_are_left_out_by_name_unless_they_are_asked_for() -> None:
    text = '{"open": {"value": 1}, "secret": {"sensitive": true, "value": "hunter2"}}'
    assert read(text, include_sensitive=False) == Outputs({"open": b"1"}, left_out=("secret",))
    assert read(text, include_sensitive=True) == Outputs({"open": b"1", "secret": b"hunter2"}, left_out=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "can't be read"),
        ("No outputs", "can't be read"),
        ('{"a": {"value": "hunter2"', "can't be read"),
        ('{"a": "hunter2"}', "can't be read"),
        ('{"a": {"value": ' + "[" * 100_000, "can't be read"),
        (said(größe="hunter2"), "output größe can't be a key of a Secret"),
        (said(a="hunter2" * (MAX_BYTES // 7), b="hunter2"), f"they have {MAX_BYTES // 7 * 7 + 9} bytes"),
    ],
)
def test_what_does_not_fit_is_refused_whole_and_without_a_value(text: str, words: str) -> None:
    with pytest.raises(OutputsError, match=words) as caught:
        read(text, include_sensitive=True)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_-]{0,20}", fullmatch=True), st.text() | st.lists(st.text())))
def test_every_output_comes_back_as_it_was(outputs: dict[str, Any]) -> None:
    found = read(json.dumps({name: {"value": value} for name, value in outputs.items()}), include_sensitive=False)
    decoded = {
        name: value.decode() if isinstance(outputs[name], str) else json.loads(value)
        for name, value in found.values.items()
    }
    assert decoded == outputs


# ---- into which Secret


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with a_fake_api() as fake:
        yield fake


@pytest.fixture
async def secrets(tmp_path: Path, fake: FakeApi) -> AsyncIterator[PublishedSecrets]:
    async with asking(fake, tmp_path) as api:
        yield PublishedSecrets(api)


def data(fake: FakeApi) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in fake.secret(TO.secret)["data"].items()}


async def test_the_secret_is_the_tasks_and_says_of_what_it_is(fake: FakeApi, secrets: PublishedSecrets) -> None:
    await secrets.publish(Outputs({"a": b"1"}, left_out=("b", "c")), TO, a_start())
    metadata = fake.secret(TO.secret)["metadata"]
    assert data(fake) == {"a": b"1"}
    assert metadata["labels"] == {
        "app.kubernetes.io/managed-by": "terrahalt",
        "terrahalt.dev/workspace": "network",
        "terrahalt.dev/outputs": "network",
    }
    assert metadata["annotations"] == {
        "terrahalt.dev/task": "network",
        "terrahalt.dev/run": "01JRUN",
        "terrahalt.dev/left-out": '["b","c"]',
    }
    assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["task-uid"]


async def test_one_that_is_to_be_retained_has_no_owner(fake: FakeApi, secrets: PublishedSecrets) -> None:
    await secrets.publish(Outputs({}, ()), msgspec.structs.replace(TO, retain=True), a_start())
    assert "ownerReferences" not in fake.secret(TO.secret)["metadata"]


async def test_the_outputs_of_the_apply_before_are_replaced_whole(fake: FakeApi, secrets: PublishedSecrets) -> None:
    await secrets.publish(Outputs({"a": b"1", "gone": b"1"}, ("b",)), TO, a_start())
    await secrets.publish(Outputs({"a": b"2"}, ()), TO, a_start(run_id="01JNEXT"))
    assert data(fake) == {"a": b"2"}
    assert fake.secret(TO.secret)["metadata"]["annotations"] == {
        "terrahalt.dev/task": "network",
        "terrahalt.dev/run": "01JNEXT",
    }


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "was not made by terrahalt"),
        ({"app.kubernetes.io/managed-by": "terrahalt", "terrahalt.dev/workspace": "network"}, "was not made"),
        ({"terrahalt.dev/outputs": "database"}, "has the outputs of workspace database"),
    ],
)
async def test_a_secret_of_somebody_else_is_not_touched(
    fake: FakeApi, secrets: PublishedSecrets, labels: dict[str, str], words: str
) -> None:
    fake.put("secrets", TO.secret, metadata={"labels": labels, "resourceVersion": "7"}, data={"theirs": ""})
    with pytest.raises(OutputsError, match=f"Secret network-outputs is there already and {words}"):
        await secrets.publish(Outputs({"a": b"1"}, ()), TO, a_start())
    assert data(fake) == {"theirs": b""}


async def test_a_secret_that_somebody_makes_in_the_meantime_is_not_touched_either(
    fake: FakeApi, secrets: PublishedSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = ClusterApi.secret_object

    async def look_and_be_late(api: ClusterApi, name: str) -> dict[str, Any]:
        try:
            return await look(api, name)
        finally:
            if name not in fake.names:
                fake.put("secrets", name, metadata={"resourceVersion": "7"}, data={"theirs": ""})

    monkeypatch.setattr(ClusterApi, "secret_object", look_and_be_late)
    with pytest.raises(OutputsError, match="was not made by terrahalt"):
        await secrets.publish(Outputs({"a": b"1"}, ()), TO, a_start())
    assert data(fake) == {"theirs": b""}


# ---- and that nothing of it changes the result


def applied(**fields: Any) -> Story:
    """A run whose apply is done, and whose state is saved."""
    story = Story(**({"values": VALUES} | fields)).in_step(Step.APPLY, begun(), completed())
    story.end_process(0, summary())
    return story


def publishing(**fields: Any) -> Story:
    story = applied(**fields)
    written, publish = story.tell(AftermathChecked(FREE))
    assert isinstance(written, WriteTerminationMessage)
    assert publish == PublishOutputs(TO)
    return story


def result_of(story: Story) -> Result:
    assert story.run.result is not None
    assert story.last.result == story.run.result
    return story.run.result


def test_the_result_is_written_down_before_outputs_are_published_and_told_after_it() -> None:
    story = publishing()
    (written,) = [each.report for each in story.done if isinstance(each, WriteTerminationMessage)]
    assert written.result is not None
    assert (written.result.outcome, written.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert story.run.result is None
    assert all(report.result is None for report in story.reports)
    (final,) = story.tell(OutputsPublished(3))
    assert isinstance(final, WriteTerminationMessage)
    assert result_of(story).outputs == PublishedOutputs(secret="network-outputs", count=3)
    assert result_of(story).message == "Apply complete! Resources: 1 added, 0 changed, 0 destroyed"
    assert story.last.sequence > written.sequence


def test_outputs_that_can_not_be_published_leave_the_result_as_it_is_and_say_why() -> None:
    story = publishing()
    story.tell(OutputsPublished(problem="Secret network-outputs is somebody's" + "!" * 1000))
    result = result_of(story)
    assert (result.outcome, result.reason, result.state) == (Outcome.SUCCEEDED, "Applied", StateCondition.COMPLETE)
    assert result.outputs is not None
    assert len(result.outputs.problem) == 300
    assert "; its outputs are not in Secret network-outputs: Secret network-outputs is somebody's!" in result.message


@pytest.mark.parametrize("reason", CancelReason)
def test_a_cancel_while_they_are_published_changes_nothing_of_the_result(reason: CancelReason) -> None:
    story = publishing()
    assert story.cancel(reason=reason) == []
    story.tell(OutputsPublished(1))
    result = result_of(story)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert result.outputs == PublishedOutputs(secret="network-outputs", count=1)
    assert story.last.cancel is not None


def test_when_its_time_is_over_what_publishes_is_ended_and_the_result_is_told_without_it() -> None:
    story = publishing()
    assert story.wait() == (TIMES.publish_s, [AbandonPreparation(), Sweep()])
    assert story.tell(OutputsPublished(1)) == [], "it came too late"
    assert story.run.result is None, "what it has started may be alive"
    story.tell(SweepEmptied(1))
    result = result_of(story)
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.SUCCEEDED, "Applied", 0)
    assert result.outputs == PublishedOutputs(secret="network-outputs", problem="there was no time for it")


def test_a_pod_that_ends_leaves_it_little_time() -> None:
    story = publishing()
    story.cancel(reason=CancelReason.POD_TERMINATION)
    assert story.wait() == (TIMES.publish_in_haste_s, [AbandonPreparation(), Sweep()])
    ending = Story(values=VALUES).in_step(Step.APPLY, begun(), completed())
    ending.tell(CancelRequested(CancelReason.POD_TERMINATION))
    ending.end_process(0, summary())
    ending.tell(AftermathChecked(FREE))
    assert ending.wait() == (TIMES.publish_in_haste_s, [AbandonPreparation(), Sweep()])


def test_what_can_not_be_killed_then_is_left_to_the_kernel_with_the_true_result() -> None:
    story = publishing()
    story.wait()
    done = [instruction for _ in range(TIMES.sweeps) for instruction in story.tell(SweepStalled((7,)))]
    written, left = done[-2:]
    assert left == LeaveToKernel((7,))
    assert isinstance(written, WriteTerminationMessage)
    assert written.report.result is not None
    assert (written.report.result.outcome, written.report.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert (written.report.result.state, written.report.result.lock) == (StateCondition.COMPLETE, FREE)


@pytest.mark.parametrize("action", [Action.PLAN, Action.DESTROY])
def test_a_plan_and_a_destroy_publish_nothing(action: Action) -> None:
    story = Story(values=VALUES, action=action).in_step(Step.PLAN if action is Action.PLAN else Step.APPLY)
    assert story.end(0, summary("plan" if action is Action.PLAN else "destroy")).outcome is Outcome.SUCCEEDED
    assert PublishOutputs(TO) not in story.done


def test_an_apply_that_failed_or_was_cancelled_publishes_nothing() -> None:
    failed = Story(values=VALUES).in_step(Step.APPLY, begun(), completed())
    assert failed.end(1, an_error()).outcome is Outcome.FAILED
    cancelled = Story(values=VALUES).in_step(Step.APPLY, begun())
    cancelled.cancel()
    assert cancelled.end(1, interrupt_received(), operation_canceled()).outcome is Outcome.CANCELLED
    assert PublishOutputs(TO) not in [*failed.done, *cancelled.done]


def test_a_state_of_which_it_is_not_certain_that_it_is_whole_gives_no_outputs() -> None:
    story = Story(values=VALUES).in_step(Step.APPLY, begun(), completed())
    result = story.end(0, summary(), errored_state=ErroredState("/module/errored.tfstate"))
    assert (result.outcome, result.state) == (Outcome.SUCCEEDED, StateCondition.NOT_PERSISTED)
    assert PublishOutputs(TO) not in story.done


def test_a_plan_that_waits_for_a_person_publishes_nothing_and_its_apply_does() -> None:
    planning = Story(values=VALUES, approval=Approval(source=Source())).in_step(Step.PLAN)
    planning.end_process(0, summary("plan"))
    planning.tell(PlanKept("sha256:0", "x86_64"))
    planning.tell(AftermathChecked(FREE))
    assert result_of(planning).kept_plan is not None
    assert PublishOutputs(TO) not in planning.done
    plan = ApprovedPlan(run_id="01JPLAN", digest="sha256:0", summary=PlanSummary(add=1))
    story = Story(values=VALUES, approval=Approval(source=Source(), plan=plan))
    story.tell(story.prepared)
    story.end_process(0)
    story.tell(StateKept())
    story.end_process(0, begun(), completed(), summary())
    assert story.tell(AftermathChecked(FREE))[-1] == PublishOutputs(TO)


def test_no_outputs_are_asked_for_where_the_task_names_no_secret() -> None:
    story = applied(values=None)
    story.tell(AftermathChecked(FREE))
    assert result_of(story).outputs is None
