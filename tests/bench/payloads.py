"""Messages of exactly the wanted size, and their frames.

With the codec's own limit a frame is what `encode` gives; with a higher one a message stays whole, which is
what the parts are compared with. Called by both sides of the sockets part.
"""

from __future__ import annotations

import msgspec

from terrahalt_protocol.codec import encode
from terrahalt_protocol.messages import Action, Command, FromAgent, Report, Source, Start, Step, TaskRef


def start_of(size_bytes: int) -> Start:
    """A Start that encodes to this many bytes: the message that carries a source."""

    def start(text: str) -> Start:
        return Start(
            epoch=1,
            run_id="01BENCH",
            task=TaskRef(namespace="bench", name="bench", uid="bench"),
            action=Action.PLAN,
            workspace="bench",
            source=Source(inline={"main.tf": text}),
            report_key="00",
        )

    return start("x" * (size_bytes - _size(start(""))))


def report_of(size_bytes: int) -> Report:
    """A Report that encodes to this many bytes."""

    def report(text: str) -> Report:
        return Report(run_id="01BENCH", task_uid="bench", boot_id="b", sequence=1, step=Step.APPLY, message=text)

    return report("x" * (size_bytes - _size(report(""))))


def frames_of(message: Command | FromAgent, max_frame_bytes: int) -> list[str]:
    encoded = msgspec.json.encode(message)
    return [encoded.decode()] if len(encoded) <= max_frame_bytes else encode(message)


def _size(message: Command | FromAgent) -> int:
    return len(msgspec.json.encode(message))
