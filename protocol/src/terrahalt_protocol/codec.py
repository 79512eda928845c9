"""Messages to frames and back, and the errors for what does not fit.

A frame is one WebSocket text message of at most `MAX_FRAME_BYTES`: a TLS connection keeps buffers
as large as the largest message it has seen, and an operator holds a thousand of them. A longer
message goes as several `Part` frames. Unknown fields are ignored, so that v1 can grow; a missing
field, a wrong type or an unknown message is a `ProtocolError` that names both sides.
Called by the socket adapters of operator and agent; no I/O here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar, cast

import msgspec

from terrahalt_protocol.messages import PROTOCOL_VERSION, Command, FromAgent, Hello

MAX_FRAME_BYTES = 16 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
_PART_TEXT_CHARS = 4_000  # at most 4 bytes each in UTF-8, and at most 2 where JSON escapes them again


class ProtocolError(Exception):
    """What arrived can't be understood; the text says what was expected of whom."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Part"):
    index: int
    count: int
    text: str


_encoder = msgspec.json.Encoder()
M = TypeVar("M")


def encode(message: Command | FromAgent) -> list[str]:
    """The frames of one message, in the order in which they must be sent.

    Raises ProtocolError if the message is over MAX_MESSAGE_BYTES.
    """
    text = _encoder.encode(message).decode()
    size = len(text.encode())
    if size <= MAX_FRAME_BYTES:
        return [text]
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} has {size} bytes, at most {MAX_MESSAGE_BYTES} can be sent: "
            "make the task's source or variables smaller"
        )
    pieces = [text[i : i + _PART_TEXT_CHARS] for i in range(0, len(text), _PART_TEXT_CHARS)]
    return [_encoder.encode(_Part(index=i, count=len(pieces), text=piece)).decode() for i, piece in enumerate(pieces)]


class _Decoder(Generic[M]):
    """The receiving end of one connection: frames in, messages out. Parts never interleave."""

    _json: ClassVar[msgspec.json.Decoder[Any]]
    _sender: ClassVar[str]
    _receiver: ClassVar[str]

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0

    def feed(self, frame: str) -> M | None:
        """The message that this frame completes, or None where parts are missing. Raises ProtocolError."""
        message = self._decode(frame)
        if not isinstance(message, _Part):
            return message
        whole = self._join(message)
        if whole is None:
            return None
        message = self._decode(whole)
        if isinstance(message, _Part):
            raise ProtocolError("a part of a message held another part")
        return message

    def _decode(self, text: str) -> M | _Part:
        try:
            return cast("M | _Part", self._json.decode(text))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ProtocolError(
                f"this {self._receiver} speaks protocol {PROTOCOL_VERSION} "
                f"and can't read a message of the {self._sender}: {error}"
            ) from error

    def _join(self, part: _Part) -> str | None:
        if part.index != len(self._pieces) or part.index >= part.count:
            raise ProtocolError(f"part {part.index} of {part.count} came where part {len(self._pieces)} was due")
        self._pieces.append(part.text)
        self._chars += len(part.text)
        if self._chars > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message in parts grew over {MAX_MESSAGE_BYTES} bytes")
        if len(self._pieces) < part.count:
            return None
        whole = "".join(self._pieces)
        self._pieces, self._chars = [], 0
        return whole


class CommandDecoder(_Decoder[Command]):
    """The agent's end."""

    _json = msgspec.json.Decoder(Command | _Part)
    _sender, _receiver = "operator", "agent"


class FromAgentDecoder(_Decoder[FromAgent]):
    """The operator's end."""

    _json = msgspec.json.Decoder(FromAgent | _Part)
    _sender, _receiver = "agent", "operator"


def version_mismatch(hello: Hello) -> str | None:
    """Why a run can't be started on this agent, or None. Cancel and Report work all the same."""
    if hello.protocol_version == PROTOCOL_VERSION:
        return None
    return (
        f"agent {hello.pod_name} ({hello.agent_version}) speaks protocol {hello.protocol_version}, "
        f"this operator speaks {PROTOCOL_VERSION}: it can be cancelled, but is given no new run"
    )
