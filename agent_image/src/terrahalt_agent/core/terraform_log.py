"""One line of `terraform -json`: what it says, and how a person reads it.

terraform 1.11 and OpenTofu 1.12 write the same shapes. A line that is no JSON, of another shape or cut is
plain text, never an error. Called by `driver` for each line of the log; pure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

MAX_TEXT_CHARS = 16_000
"""Of one line in the pod's log: container runtimes split longer ones."""


class Resource(msgspec.Struct, frozen=True):
    addr: str = ""


class Hook(msgspec.Struct, frozen=True):
    resource: Resource = Resource()
    action: str = ""


class Position(msgspec.Struct, frozen=True):
    line: int = 0


class Range(msgspec.Struct, frozen=True):
    filename: str = ""
    start: Position = Position()


class Diagnostic(msgspec.Struct, frozen=True):
    severity: str = ""
    summary: str = ""
    detail: str = ""
    address: str = ""
    range: Range | None = None


class Changes(msgspec.Struct, frozen=True):
    add: int = 0
    change: int = 0
    remove: int = 0
    operation: str = ""


class Line(msgspec.Struct, frozen=True):
    """`type` is empty for plain text."""

    message: str = msgspec.field(name="@message", default="")
    type: str = ""
    hook: Hook | None = None
    diagnostic: Diagnostic | None = None
    changes: Changes | None = None
    outputs: dict[str, Any] | None = None

    @property
    def is_heartbeat(self) -> bool:
        """ "Still creating... [10s elapsed]": terraform's own clock, which ticks beside a provider that hangs too."""
        return self.type in _HEARTBEATS


_HEARTBEATS = frozenset({"apply_progress", "ephemeral_op_progress", "ephemeral_action_progress"})
LOCK_REFUSED = "Error acquiring the state lock"
_HTTP_HOLDER = re.compile(r"HTTP remote state already locked: ID=(\S+)")
_LOCK_INFO = re.compile(r"^ *(ID|Who|Created): *(\S.*?) *$", re.MULTILINE)
_TOO_EXACT = re.compile(r"\.\d+| \+0000")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # init writes some into its messages even with -json
_decoder = msgspec.json.Decoder(Line)


def parse(raw: bytes) -> Line:
    """Never raises; binary junk becomes replacement characters."""
    if raw.startswith(b"{"):
        try:
            line = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            if line.type:
                return line
    return Line(message=raw[:MAX_TEXT_CHARS].decode(errors="replace"))


def printable(text: str) -> str:
    """Without what would command the terminal of whoever reads it."""
    return _UNPRINTABLE.sub("\ufffd", text)


def is_chatter(raw: bytes) -> bool:
    """What a provisioner prints: people read it, and nothing else rests on it. Costs next to nothing."""
    return raw.endswith(b'"type":"provision_progress"}')


def readable(line: Line) -> list[str]:
    """The lines that a person reads in `kubectl logs`; empty for what says nothing."""
    if line.diagnostic is not None:
        return _diagnostic(line.diagnostic)
    texts = [text.rstrip() for text in _ANSI.sub("", line.message).splitlines() if text.strip()]
    if line.type == "outputs" and line.outputs:
        texts += [f"  {name} = {_output(value)}" for name, value in line.outputs.items()]
    return texts


def place(diagnostic: Diagnostic) -> str:
    """Where it happened: "terraform_data.c, main.tf line 2", or nothing."""
    places = [diagnostic.address] if diagnostic.address else []
    if diagnostic.range is not None and diagnostic.range.filename:
        places.append(f"{diagnostic.range.filename} line {diagnostic.range.start.line}")
    return ", ".join(places)


def lock_holder(diagnostic: Diagnostic) -> str:
    """Who has the state's lock, if this is how terraform says that it has waited for it in vain; else empty.

    A lock without an ID is none that it waits for: an error of the backend. Of an http backend only the holder's ID
    is known, beside terraform's own attempt."""
    info = dict(_LOCK_INFO.findall(diagnostic.detail)) if diagnostic.summary == LOCK_REFUSED else {}
    if "ID" not in info:
        return ""
    if (http := _HTTP_HOLDER.search(diagnostic.detail)) and http[1] != info["ID"]:
        return f"somebody whom the backend does not name (ID {http[1]})"
    created = _TOO_EXACT.sub("", info.get("Created", "an unknown time"))
    return f"{info.get('Who', 'somebody')} since {created} (ID {info['ID']})"


def _diagnostic(diagnostic: Diagnostic) -> list[str]:
    where = place(diagnostic)
    head = f"{diagnostic.severity.capitalize()}: {' '.join(diagnostic.summary.split())}"
    head += f" ({where})" if where else ""
    return [head, *(f"  {text.rstrip()}" for text in diagnostic.detail.splitlines() if text.strip())]


def _output(value: Any) -> str:
    if not isinstance(value, dict):
        return "?"
    if value.get("sensitive", True):
        return "(sensitive)"
    if "value" not in value:
        return f"({value.get('action', 'known after apply')})"
    return msgspec.json.encode(value["value"]).decode()[:1_000]
