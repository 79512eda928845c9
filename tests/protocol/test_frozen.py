"""Hello, Cancel and Report are version 1 for ever: `golden/` holds messages of the first release.

A failure here means that an old operator or agent would lose the control of a run. Never change a
golden file: give a new field a default instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from terrahalt_protocol.codec import CommandDecoder, FromAgentDecoder, encode
from terrahalt_protocol.messages import (
    Action,
    Approval,
    ArchiveSource,
    Backend,
    Cancel,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    ConfigFrom,
    GitSource,
    Hello,
    Lock,
    LockCondition,
    Outcome,
    OutputsTo,
    PlanSummary,
    Report,
    Result,
    Rung,
    Source,
    Start,
    StateCondition,
    Step,
    TaskRef,
    Values,
)

GOLDEN = Path(__file__).parent / "golden"
_LOCK = Lock(condition=LockCondition.HELD, id="i", who="01J@agent-0", command="kubectl ...")
_RESULT = Result(
    outcome=Outcome.CANCELLED,
    reason="CancelledByUser",
    message="m",
    exit_code=1,
    state=StateCondition.INCOMPLETE,
    lock=_LOCK,
    forced=True,
    open_addresses=("a.b", "a.c"),
    open_address_count=2,
)
_CANCEL = CancelReport(
    reason=CancelReason.USER,
    mode=CancelMode.FORCE,
    rung=Rung.KILL_PROVIDERS,
    ages=CancelAges(received_s=4.0, signalled_s=3.0, exited_s=2.0, swept_s=1.0),
)
MESSAGES: dict[str, Hello | Cancel | Report] = {
    "hello.full": Hello(
        protocol_version=1,
        agent_version="0.1.0",
        namespace="team-a",
        pod_name="agent-0",
        pod_uid="u",
        boot_id="b",
        identity_token="t",
        highest_epoch=7,
        runs=("01J",),
        used=True,
    ),
    "hello.least": Hello(
        protocol_version=1, agent_version="0.1.0", namespace="team-a", pod_name="agent-0", pod_uid="u", boot_id="b"
    ),
    "cancel.full": Cancel(
        epoch=7, run_id="01J", reason=CancelReason.DELETION, mode=CancelMode.FORCE, grace_s=5, report_key="00"
    ),
    "cancel.least": Cancel(epoch=7, run_id="01J", reason=CancelReason.USER),
    "report.full": Report(
        run_id="01J",
        task_uid="u",
        boot_id="b",
        sequence=9,
        step=Step.SWEEP,
        started_s=60.0,
        message="m",
        plan=PlanSummary(add=1, change=2, destroy=3),
        resources_done=1,
        resources_current="a.b",
        cancel=_CANCEL,
        result=_RESULT,
    ),
    "report.least": Report(run_id="01J", task_uid="u", boot_id="b", sequence=1, step=Step.PREPARE),
}
ENUMS = {
    "enums": {
        enum.__name__: [member.value for member in enum]
        for enum in (CancelMode, CancelReason, Step, Outcome, Rung, StateCondition, LockCondition)
    }
}


def golden(name: str) -> Any:
    return msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())


def decoded(raw: Any) -> Any:
    text = msgspec.json.encode(raw).decode()
    return CommandDecoder().feed(text) if raw["type"] == "Cancel" else FromAgentDecoder().feed(text)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_the_first_release_is_read_as_it_was_meant(name: str) -> None:
    assert decoded(golden(name)) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_first_release_finds_each_of_its_fields_as_it_knows_it(name: str) -> None:
    assert_holds(msgspec.json.decode(encode(MESSAGES[name])[0]), golden(name))


@pytest.mark.parametrize("name", [name for name in MESSAGES if name.endswith(".least")])
def test_no_field_has_become_required(name: str) -> None:
    required = {
        "Hello": {"protocol_version", "agent_version", "namespace", "pod_name", "pod_uid", "boot_id"},
        "Cancel": {"epoch", "run_id", "reason"},
        "Report": {"run_id", "task_uid", "boot_id", "sequence", "step"},
    }
    raw = golden(name)
    least = {field: value for field, value in raw.items() if field in required[raw["type"]] | {"type"}}
    assert decoded(least) == MESSAGES[name]


def test_no_value_of_the_first_release_is_gone() -> None:
    for name, values in golden("enums").items():
        assert set(values) <= set(ENUMS["enums"][name])


def test_an_agent_of_the_first_release_reads_a_source_that_it_does_not_know_as_none() -> None:
    """It refuses to prepare such a run, and so runs nothing instead of something else."""

    class FirstSource(msgspec.Struct, frozen=True, kw_only=True):
        inline: dict[str, str] | None = None
        config_map: str | None = None

    git, archive = (
        GitSource(url="https://git.example.com/a"),
        ArchiveSource(url="https://files.example.com/a", sha256="0"),
    )
    for source in (Source(git=git), Source(archive=archive)):
        assert msgspec.json.decode(msgspec.json.encode(source), type=FirstSource) == FirstSource()


def test_an_agent_that_knows_plain_repositories_only_reads_any_other_as_none() -> None:
    """It would fetch it without its submodules, or from whoever answers."""

    class OlderSource(msgspec.Struct, frozen=True, kw_only=True):
        inline: dict[str, str] | None = None
        config_map: str | None = None
        git: dict[str, str] | None = None

    plain = GitSource(url="https://git.example.com/a")
    for more in ({"secret": "robot"}, {"authority": ConfigFrom(secret="ca")}, {"submodules": True}):
        git = msgspec.structs.replace(plain, **more)
        assert not git.is_plain
        source = Source(private_git=git)
        assert source.repository == git
        assert msgspec.json.decode(msgspec.json.encode(source), type=OlderSource) == OlderSource()
    assert plain.is_plain
    assert Source(git=plain).repository == plain


def test_an_agent_of_the_first_release_reads_a_run_with_another_backend_as_one_without_a_source() -> None:
    """It would run it with its own backend, on another state."""

    class FirstStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Start"):
        run_id: str
        source: Source

    files = Source(inline={"main.tf": ""})
    start = Start(
        epoch=1,
        run_id="01J",
        task=TaskRef(namespace="team-a", name="network", uid="u"),
        action=Action.APPLY,
        workspace="network",
        source=Source(),
        backend=Backend(type="s3", source=files),
        report_key="00",
    )
    (frame,) = encode(start)
    assert msgspec.json.decode(frame, type=FirstStart) == FirstStart(run_id="01J", source=Source())
    assert CommandDecoder().feed(frame) == start
    assert start.files_from == files


@pytest.mark.parametrize("type_", [None, "s3"])
def test_an_agent_that_knows_no_approval_reads_a_run_with_one_as_one_without_a_source(type_: str | None) -> None:
    """It would apply what nobody has approved."""

    class EarlierStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Start"):
        source: Source
        backend: Backend | None = None

    files = Source(inline={"main.tf": ""})
    start = Start(
        epoch=1,
        run_id="01J",
        task=TaskRef(namespace="team-a", name="network", uid="u"),
        action=Action.APPLY,
        workspace="network",
        source=Source(),
        backend=Backend(type=type_, source=Source()) if type_ else None,
        approval=Approval(source=files),
        report_key="00",
    )
    (frame,) = encode(start)
    read = msgspec.json.decode(frame, type=EarlierStart)
    assert (read.source if read.backend is None else read.backend.source) == Source()
    assert CommandDecoder().feed(frame) == start
    assert start.files_from == files


@pytest.mark.parametrize(
    "values", [{"variables_from": (ConfigFrom(secret="net"),)}, {"outputs_to": OutputsTo(secret="o")}]
)
@pytest.mark.parametrize("others", [{}, {"backend": Backend(type="s3", source=Source())}])
def test_an_agent_that_knows_no_values_reads_a_run_with_some_as_one_without_a_source(
    values: dict[str, Any], others: dict[str, Any]
) -> None:
    """It would apply without its variables, and leave its outputs nowhere."""

    class EarlierStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Start"):
        source: Source
        backend: Backend | None = None
        approval: Approval | None = None

    files = Source(inline={"main.tf": ""})
    start = Start(
        epoch=1,
        run_id="01J",
        task=TaskRef(namespace="team-a", name="network", uid="u"),
        action=Action.APPLY,
        workspace="network",
        source=Source(),
        values=Values(source=files, **values),
        report_key="00",
        **others,
    )
    (frame,) = encode(start)
    read = msgspec.json.decode(frame, type=EarlierStart)
    assert (read.source if read.backend is None else read.backend.source) == Source()
    assert CommandDecoder().feed(frame) == start
    assert start.files_from == files


def test_an_agent_of_the_first_release_does_not_say_that_it_can_refresh_credentials_so_it_is_not_asked() -> None:
    """It could not read the command, and would hang up."""
    hello = decoded(golden("hello.full"))
    assert isinstance(hello, Hello)
    assert hello.refreshed is None


def test_an_operator_of_the_first_release_reads_why_an_agent_ended_a_run_as_a_reason_that_it_knows() -> None:
    """A reason that is new would keep it from reading the report, and so from the control of the run."""

    class FirstCancelReport(msgspec.Struct, frozen=True, kw_only=True):
        reason: Literal["User", "Deletion", "Timeout", "PodTermination"]
        mode: CancelMode
        rung: Rung
        ages: CancelAges

    for reason in CancelReason:
        sent = msgspec.json.encode(msgspec.structs.replace(_CANCEL, reason=reason, cause="OutOfMemory"))
        assert msgspec.json.decode(sent, type=FirstCancelReport).reason == reason.value


def assert_holds(new: Any, old: Any) -> None:
    """`new` may say more than `old`, never less or something else."""
    if isinstance(old, dict):
        for field, value in old.items():
            assert_holds(new[field], value)
    else:
        assert new == old


def test_an_agent_of_the_first_release_would_end_an_apply_for_a_newer_task_so_it_does_not_say_that_it_spares_one() -> (
    None
):
    """It does not see `superseded_by`: the operator must not send such a Cancel to who does not say so in its Hello."""
    hello = decoded(golden("hello.full"))
    assert isinstance(hello, Hello)
    assert not hello.spares_apply
