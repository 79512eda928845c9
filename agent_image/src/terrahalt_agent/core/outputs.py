"""The outputs of a state as the keys of a Secret: text as it is, all else as JSON.

Sensitive ones only where the task asks for them; a null is none. What does not fit is refused whole, with the name of
the output and never its value: half of the outputs would be taken for all. Pure; called by `adapters.outputs`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import msgspec

from terrahalt_protocol.kept_secret import MAX_BYTES

_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")


class OutputsError(Exception):
    """They can't be had, or can't be kept. The text says why."""


@dataclass(frozen=True, slots=True)
class Outputs:
    values: dict[str, bytes]
    left_out: tuple[str, ...]
    """Sensitive ones that were not asked for."""


class _Output(msgspec.Struct, frozen=True):
    value: msgspec.Raw
    sensitive: bool = False


def read(said: str, *, include_sensitive: bool) -> Outputs:
    """Of what `terraform output -json` prints, to whose end it may add warnings. Raises OutputsError."""
    try:
        begin = said.index("{")
        _, end = json.JSONDecoder().raw_decode(said, begin)
        found = msgspec.json.decode(said[begin:end], type=dict[str, _Output])
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, too; none may show a value
        raise OutputsError("what the engine says of them can't be read") from None
    values: dict[str, bytes] = {}
    for name, output in found.items():
        if output.sensitive and not include_sensitive:
            continue
        if not _KEY.fullmatch(name):
            raise OutputsError(f"output {name} can't be a key of a Secret: give it a name of letters, digits, _ and -")
        values[name] = _value(output.value)
    size = sum(len(name) + len(value) for name, value in values.items())
    if size > MAX_BYTES:
        raise OutputsError(f"they have {size} bytes, and a Secret holds {MAX_BYTES} of them: make them smaller")
    return Outputs(values, tuple(name for name, output in found.items() if output.sensitive and name not in values))


def _value(raw: msgspec.Raw) -> bytes:
    if bytes(raw).startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return msgspec.json.format(bytes(raw), indent=-1)
