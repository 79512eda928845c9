"""Messages to frames and back: nothing is lost, nothing foreign gets in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_protocol.codec import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    CommandDecoder,
    FromAgentDecoder,
    ProtocolError,
    encode,
    version_mismatch,
)
from terrahalt_protocol.messages import (
    PROTOCOL_VERSION,
    Ack,
    Action,
    Cancel,
    CancelMode,
    CancelReason,
    EnvFrom,
    Hello,
    RefusalCode,
    Refused,
    Source,
    Start,
    TaskRef,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)


def a_start(**fields: Any) -> Start:
    defaults: dict[str, Any] = {
        "epoch": 3,
        "run_id": "01J",
        "task": TaskRef(namespace="team-a", name="network", uid="u"),
        "action": Action.APPLY,
        "workspace": "network",
        "source": Source(inline={"main.tf": "x"}),
        "report_key": "00",
    }
    return Start(**(defaults | fields))


def a_hello(**fields: Any) -> Hello:
    defaults: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "agent_version": "0.1.0",
        "namespace": "team-a",
        "pod_name": "agent-0",
        "pod_uid": "u",
        "boot_id": "b",
    }
    return Hello(**(defaults | fields))


def through_the_agents_end(frames: list[str]) -> Any:
    decoder = CommandDecoder()
    messages = [message for frame in frames if (message := decoder.feed(frame)) is not None]
    (message,) = messages
    return message


@given(
    st.dictionaries(TEXT, TEXT, max_size=5),
    st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT | st.lists(TEXT), max_size=5),
    st.sampled_from(list(Action)),
)
def test_a_start_comes_back_as_it_was(files: dict[str, str], variables: dict[str, Any], action: Action) -> None:
    start = a_start(
        source=Source(inline=files), variables=variables, action=action, env_from=(EnvFrom(secret="s", prefix="P_"),)
    )
    assert through_the_agents_end(encode(start)) == start


@given(st.sampled_from(list(CancelReason)), st.sampled_from(list(CancelMode)), st.none() | st.integers(0, 3600))
def test_a_cancel_comes_back_as_it_was(reason: CancelReason, mode: CancelMode, grace_s: int | None) -> None:
    cancel = Cancel(epoch=1, run_id="01J", reason=reason, mode=mode, grace_s=grace_s)
    assert through_the_agents_end(encode(cancel)) == cancel


@pytest.mark.parametrize("text", ["x" * 20_000, "ä" * 30_000, '"\\\n' * 20_000, "\U0001f600" * 10_000, "\0" * 9_000])
def test_a_long_message_goes_in_frames_that_fit(text: str) -> None:
    start = a_start(source=Source(inline={"main.tf": text}))
    frames = encode(start)
    assert len(frames) > 1
    assert max(len(frame.encode()) for frame in frames) <= MAX_FRAME_BYTES
    assert through_the_agents_end(frames) == start


def test_a_short_message_is_one_frame() -> None:
    assert len(encode(a_start())) == 1


def test_a_message_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ProtocolError, match="make the task's source or variables smaller"):
        encode(a_start(source=Source(inline={"main.tf": "x" * (MAX_MESSAGE_BYTES + 1)})))


def test_after_a_long_message_the_next_one_is_read() -> None:
    decoder = CommandDecoder()
    for frame in encode(a_start(source=Source(inline={"main.tf": "x" * 50_000}))):
        decoder.feed(frame)
    assert decoder.feed(encode(Ack(epoch=1, run_id="01J"))[0]) == Ack(epoch=1, run_id="01J")


def test_a_part_that_is_missing_or_comes_twice_is_refused() -> None:
    frames = encode(a_start(source=Source(inline={"main.tf": "x" * 50_000})))
    for wrong in (frames[1:], [frames[0], frames[0]]):
        with pytest.raises(ProtocolError, match="part"):
            through_the_agents_end(wrong)


def test_parts_without_an_end_are_cut_off() -> None:
    parts = [{"type": "Part", "index": n, "count": 10**9, "text": "x" * 4_000} for n in range(300)]
    with pytest.raises(ProtocolError, match="grew over"):
        through_the_agents_end([msgspec.json.encode(part).decode() for part in parts])


@pytest.mark.parametrize(
    "frame",
    ["", "{", "[]", "null", '{"type":"Dance"}', '{"type":"Ack","epoch":1}', '{"type":"Ack","epoch":"1","run_id":""}'],
)
def test_what_cannot_be_read_names_both_sides(frame: str) -> None:
    with pytest.raises(ProtocolError, match=r"this agent speaks protocol 1 and can't read a message of the operator"):
        CommandDecoder().feed(frame)
    with pytest.raises(ProtocolError, match=r"this operator speaks protocol 1 and can't read a message of the agent"):
        FromAgentDecoder().feed(frame)


def test_each_side_reads_only_what_the_other_one_says() -> None:
    with pytest.raises(ProtocolError):
        CommandDecoder().feed(encode(a_hello())[0])
    with pytest.raises(ProtocolError):
        FromAgentDecoder().feed(encode(Ack(epoch=1, run_id="01J"))[0])


def test_unknown_fields_of_a_newer_side_are_ignored() -> None:
    raw = msgspec.json.decode(encode(Ack(epoch=1, run_id="01J"))[0]) | {"colour": {"deep": [1]}}
    assert CommandDecoder().feed(msgspec.json.encode(raw).decode()) == Ack(epoch=1, run_id="01J")


def test_a_refusal_carries_its_code() -> None:
    refused = Refused(code=RefusalCode.STALE_EPOCH, message="no", run_id="01J", highest_epoch=9)
    assert FromAgentDecoder().feed(encode(refused)[0]) == refused


def test_another_version_blocks_a_start_and_says_who_speaks_what() -> None:
    assert version_mismatch(a_hello()) is None
    text = version_mismatch(a_hello(protocol_version=2))
    assert text is not None
    assert "agent agent-0 (0.1.0) speaks protocol 2, this operator speaks 1" in text
