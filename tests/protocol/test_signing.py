"""A termination message counts only if the run wrote it, and always fits."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from terrahalt_protocol.messages import (
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    KeptPlan,
    Lock,
    LockCondition,
    Outcome,
    PlanSummary,
    PublishedOutputs,
    Report,
    Result,
    Rung,
    StateCondition,
    Step,
)
from terrahalt_protocol.signing import MAX_TERMINATION_BYTES, report_key, seal, unseal

RUN = "01JZ8Q2Y5N4T7W9XKBMRCVD3FG"
KEY = report_key(b"a secret of the installation", RUN)


def a_final_report(*, run_id: str = RUN, message: str = "", **fields: Any) -> Report:
    defaults: dict[str, Any] = {
        "outcome": Outcome.CANCELLED,
        "reason": "CancelledByUser",
        "message": "m",
        "state": StateCondition.COMPLETE,
        "lock": Lock(condition=LockCondition.RELEASED),
    }
    return Report(
        run_id=run_id,
        task_uid="u",
        boot_id="b",
        sequence=1,
        step=Step.SWEEP,
        message=message,
        result=Result(**(defaults | fields)),
    )


UID = "0f6f3b6e-6f0e-4c53-9a53-4ab5c0a5e7a1"
KEPT_OF_15_CONTAINERS = 12_288 // 15
AGES = CancelAges(received_s=14.48291847203, signalled_s=12.38291847203, exited_s=3.28291847203, swept_s=0.0)
CANCEL = CancelReport(reason=CancelReason.USER, mode=CancelMode.FORCE, rung=Rung.KILL, ages=AGES)
UNLOCK = f"TF_WORKSPACE=production terraform force-unlock {UID}  # {'where and why ' * 8}"
HELD = Lock(condition=LockCondition.HELD, id=UID, who=f"{RUN}@terrahalt-agent-default-x7k2p", command=UNLOCK)


def a_real_report(message: str = "12 added, 3 changed, 1 destroyed", **fields: Any) -> Report:
    """With values as long as they are in a cluster; `fields` of the result, of the report what only that has."""
    of_report = {name: fields.pop(name) for name in tuple(fields) if name in Report.__struct_fields__}
    of_result: dict[str, Any] = {
        "outcome": Outcome.SUCCEEDED,
        "reason": "Applied",
        "exit_code": 0,
        "state": StateCondition.COMPLETE,
        "lock": Lock(condition=LockCondition.RELEASED),
        "log_kept": True,
    }
    return Report(
        **{
            "run_id": RUN,
            "task_uid": UID,
            "boot_id": UID,
            "sequence": 27,
            "step": Step.SWEEP,
            "started_s": 183.48291847203,
            "message": message,
            "plan": PlanSummary(add=12, change=3, destroy=1),
            "resources_done": 16,
            "result": Result(message=message, **(of_result | fields)),
            **of_report,
        }
    )


def addresses(count: int, length: int = 0) -> dict[str, Any]:
    named = tuple(
        f'module.network["eu-central-1"].aws_route_table_association.private[{n}]'.ljust(length, "x")
        for n in range(count)
    )
    return {"open_addresses": named, "open_address_count": count}


KILLED: dict[str, Any] = {
    "outcome": Outcome.FAILED,
    "reason": "TimedOut",
    "exit_code": -9,
    "state": StateCondition.INCOMPLETE,
    "forced": True,
    "cancel": CANCEL,
    "source_commit": "a" * 40,
}
LONG = "terraform apply was killed: " + 'creating "ключ"\n\x1b[31mfailed; ' * 200
SUCCESS = a_real_report()
OF_OUTPUTS = a_real_report(outputs=PublishedOutputs(secret="network-outputs", count=12))
KEPT_PLAN = KeptPlan(digest=f"sha256:{'a' * 64}", architecture="x86_64")
AWAITING = a_real_report(outcome=Outcome.FAILED, reason="AwaitingApproval", kept_plan=KEPT_PLAN, source_commit="a" * 40)
CANCELLED = a_real_report("cancelled in terraform apply, which stopped after SIGINT", cancel=CANCEL, exit_code=1)
KILLED_WITH_20_OPEN = a_real_report(
    f"timed out in terraform apply, which had to be killed: {'x' * 400}", **KILLED, **addresses(20)
)
KILLED_WITH_LOCK = a_real_report(LONG[:500], **KILLED, **addresses(20), lock=HELD)
WORST = a_real_report(LONG, **KILLED, **addresses(50, length=300), lock=HELD, resources_current="x" * 300)
UNPUBLISHED = a_real_report(LONG, outputs=PublishedOutputs(secret="s" * 63, problem="é" * 300))
EVER_SO_LONG = a_real_report(
    LONG,
    **KILLED,
    **addresses(50, length=300),
    lock=replace(HELD, command="x" * 800),
    outputs=PublishedOutputs(secret="s" * 253, problem="é" * 300),
    kept_plan=KEPT_PLAN,
)
REPORTS = pytest.mark.parametrize(
    "report",
    [SUCCESS, OF_OUTPUTS, AWAITING, CANCELLED, KILLED_WITH_20_OPEN, KILLED_WITH_LOCK, WORST, UNPUBLISHED, EVER_SO_LONG],
    ids=["success", "outputs", "awaiting", "cancelled", "killed", "locked", "worst", "unpublished", "ever so long"],
)


def end_of_least(sealed: bytes) -> int:
    """In bytes: where what is essential has come to its end."""
    text, before = sealed.decode(), '{"least":'
    if not text.startswith(before):
        return len(sealed)
    _, end = json.JSONDecoder().raw_decode(text, len(before))
    return len(text[:end].encode())


def as_the_kubelet_cuts_it(sealed: bytes, length: int) -> str:
    """It knows no characters."""
    return sealed[:length].decode(errors="replace")


def essential(report: Report | None) -> Report:
    """Without what may be cut."""
    assert report is not None
    result = report.result
    assert result is not None
    outputs = result.outputs and replace(result.outputs, problem="why" if result.outputs.problem else "")
    result = replace(result, message="", open_addresses=(), outputs=outputs)
    return replace(report, message="", resources_current="", result=result)


@REPORTS
def test_wherever_it_is_cut_behind_what_is_essential_it_is_a_report(report: Report) -> None:
    sealed = seal(report, KEY)
    end = end_of_least(sealed)
    for length in range(end):
        assert unseal(as_the_kubelet_cuts_it(sealed, length), KEY, RUN) is None
    for length in range(end, len(sealed) + 1):
        assert essential(unseal(as_the_kubelet_cuts_it(sealed, length), KEY, RUN)) == essential(report)


@pytest.mark.parametrize("report", [SUCCESS, OF_OUTPUTS, AWAITING, CANCELLED, KILLED_WITH_20_OPEN])
def test_what_is_essential_is_left_in_a_pod_of_15_containers(report: Report) -> None:
    assert end_of_least(seal(report, KEY)) <= KEPT_OF_15_CONTAINERS


@pytest.mark.parametrize("report", [KILLED_WITH_LOCK, WORST, UNPUBLISHED])
def test_the_longest_command_that_releases_a_lock_is_left_in_a_pod_of_10(report: Report) -> None:
    assert end_of_least(seal(report, KEY)) <= 12_288 // 10


@pytest.mark.parametrize("report", [SUCCESS, OF_OUTPUTS])
def test_a_short_one_is_not_written_twice(report: Report) -> None:
    assert end_of_least(seal(report, KEY)) == len(seal(report, KEY))


@pytest.mark.parametrize("report", [SUCCESS, OF_OUTPUTS, AWAITING, CANCELLED])
def test_a_whole_message_is_the_whole_report(report: Report) -> None:
    assert unseal(seal(report, KEY).decode(), KEY, RUN) == report


def test_a_whole_message_has_most_of_20_open_addresses_and_all_of_what_people_read() -> None:
    back = unseal(seal(KILLED_WITH_20_OPEN, KEY).decode(), KEY, RUN)
    assert back is not None
    assert back.result is not None
    assert KILLED_WITH_20_OPEN.result is not None
    assert back.result.message == KILLED_WITH_20_OPEN.result.message
    assert len(back.result.open_addresses) >= 15


@REPORTS
def test_blanks_behind_it_change_nothing(report: Report) -> None:
    sealed = seal(report, KEY).decode()
    assert unseal(sealed.ljust(MAX_TERMINATION_BYTES), KEY, RUN) == unseal(sealed, KEY, RUN)


class OneLine(msgspec.Struct):
    """All that version 0.1.0 knows of a message."""

    report: str
    hmac: str


def digest(text: str) -> str:
    return hmac.new(bytes.fromhex(KEY), text.encode(), hashlib.sha256).hexdigest()


@REPORTS
def test_version_0_1_0_reads_the_fullest(report: Report) -> None:
    sealed = seal(report, KEY)
    read = msgspec.json.decode(sealed.decode(), type=OneLine)
    assert read.hmac == digest(read.report)
    assert msgspec.json.decode(read.report, type=Report) == unseal(sealed.decode(), KEY, RUN)


@REPORTS
def test_what_version_0_1_0_has_sealed_is_read(report: Report) -> None:
    text = msgspec.json.encode(report).decode()
    sealed = msgspec.json.encode(OneLine(report=text, hmac=digest(text))).decode()
    assert unseal(sealed, KEY, RUN) == report


@given(st.data())
def test_of_a_long_one_a_changed_character_costs_what_it_is_in(data: st.DataObject) -> None:
    sealed = seal(WORST, KEY).decode()
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != sealed[place]))
    found = unseal(sealed[:place] + other + sealed[place + 1 :], KEY, RUN)
    least = unseal(sealed[: end_of_least(sealed.encode())], KEY, RUN)
    assert found in (None, least, unseal(sealed, KEY, RUN))


def test_an_essential_part_that_user_code_made_up_counts_for_nothing() -> None:
    text = msgspec.json.encode(SUCCESS).decode()
    for forged in ("0" * 64, digest(text)[:-1] + "g", digest(text + " ")):
        assert unseal(f'{{"least":{{"report":{text},"hmac":"{forged}"}},', KEY, RUN) is None
    genuine = f'{{"least":{{"report":{text},"hmac":"{digest(text)}"}},'
    assert unseal(genuine, KEY, RUN) == SUCCESS
    assert unseal(genuine, report_key(b"another secret", RUN), RUN) is None
    assert unseal(genuine, KEY, "01JOTHER") is None


def test_why_outputs_are_not_there_is_cut_and_never_left_out() -> None:
    back = unseal(as_the_kubelet_cuts_it(seal(UNPUBLISHED, KEY), 1_200), KEY, RUN)
    assert back is not None
    assert back.result is not None
    assert back.result.outputs is not None
    assert 0 < len(back.result.outputs.problem) <= 100


def test_what_was_sealed_is_read_back() -> None:
    assert unseal(seal(a_final_report(), KEY).decode(), KEY, RUN) == a_final_report()


def test_the_key_is_the_same_after_a_restart_and_another_one_for_each_run() -> None:
    assert report_key(b"s", RUN) == report_key(b"s", RUN)
    assert len({report_key(b"s", RUN), report_key(b"s", "01JOTHER"), report_key(b"t", RUN)}) == 3


@given(st.data())
def test_one_changed_character_and_it_counts_for_nothing(data: st.DataObject) -> None:
    sealed = seal(a_final_report(), KEY).decode()
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != sealed[place]))
    assert unseal(sealed[:place] + other + sealed[place + 1 :], KEY, RUN) is None


def test_a_report_of_another_run_or_key_counts_for_nothing() -> None:
    other = report_key(b"a secret of the installation", "01JOTHER")
    assert unseal(seal(a_final_report(), KEY).decode(), other, RUN) is None
    assert unseal(seal(a_final_report(run_id="01JOTHER"), KEY).decode(), KEY, RUN) is None


def test_a_report_without_a_result_is_no_end() -> None:
    report = Report(run_id=RUN, task_uid="u", boot_id="b", sequence=1, step=Step.APPLY)
    assert unseal(seal(report, KEY).decode(), KEY, RUN) is None


@given(st.text(max_size=200))
def test_whatever_user_code_writes_there_counts_for_nothing(text: str) -> None:
    assert unseal(text, KEY, RUN) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"report":"é","hmac":"é"}',
        '{"report":"{}","hmac":"é"}',
        "\ud800",
        "null",
        f'{{"least":{{"report":{{\ud800}},"hmac":"{"0" * 64}"}}}}',
        '{"a":' + "[" * 4_000,
        '{"least":{"report":' + '{"a":' * 700,
        '{"report":' + "[" * 4_000,
    ],
)
def test_odd_texts_raise_nothing(text: str) -> None:
    assert unseal(text, KEY, RUN) is None


@given(st.integers(0, 50), st.text(max_size=4_000), st.text(max_size=4_000))
def test_it_always_fits_and_keeps_what_counts(addresses: int, message: str, result_message: str) -> None:
    report = a_final_report(
        message=message.encode(errors="ignore").decode(),
        outcome=Outcome.FAILED,
        reason="TimedOut",
        state=StateCondition.INCOMPLETE,
        lock=Lock(condition=LockCondition.HELD, id="i" * 36, who="01J@agent-0", command="kubectl " + "x" * 300),
        open_addresses=tuple(f"module.m.aws_instance.server[{n}]" for n in range(addresses)),
        open_address_count=addresses,
    )
    assert report.result is not None
    report = msgspec.structs.replace(
        report, result=msgspec.structs.replace(report.result, message=result_message.encode(errors="ignore").decode())
    )
    sealed = seal(report, KEY)
    assert len(sealed) <= MAX_TERMINATION_BYTES
    back = unseal(sealed.decode(), KEY, RUN)
    assert back is not None
    assert back.result is not None
    assert report.result is not None
    for field in ("outcome", "reason", "state", "lock", "open_address_count"):
        assert getattr(back.result, field) == getattr(report.result, field)
