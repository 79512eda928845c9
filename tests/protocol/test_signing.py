"""A termination message counts only if the run wrote it, and always fits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_protocol.messages import (
    Lock,
    LockCondition,
    Outcome,
    Report,
    Result,
    StateCondition,
    Step,
)
from terrahalt_protocol.signing import MAX_TERMINATION_BYTES, report_key, seal, unseal

RUN = "01JRUN"
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


@pytest.mark.parametrize("text", ['{"report":"é","hmac":"é"}', '{"report":"{}","hmac":"é"}', "\ud800", "null"])
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
