"""The backend that a task names: what of it is refused, its settings as a file, and who terraform says holds the lock.

Settings go into HCL, where a value can't become anything but itself; none is ever on a command line.
Called by `adapters.backend`; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from terrahalt_protocol.backends import KUBERNETES, NAMES, RUN_ELSEWHERE

NO_SUCH_LOCK_ID = "00000000-0000-4000-8000-000000000000"
"""force-unlock with it tells who holds a lock, and removes none."""
_KUBERNETES_KEYS = frozenset({"labels"})
"""All others say where the state is or how it is reached; where they are ours, its lock can be looked at."""
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PLAIN = re.compile(r"[A-Za-z0-9 _.,:;/@=?&+*()<>|^~!#'-]")
_FIELD = re.compile(r"^[\s│]*(ID|Who|Created):[ \t]*(\S.*?)\s*$", re.MULTILINE)
"""OpenTofu draws a line before it."""


class BackendError(Exception):
    """The task's backend can't be used as it is; a person has to change it. The text says what."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Of a lock, as terraform shows it."""

    id: str
    who: str
    created_at: float
    """Seconds since the epoch; 0 where it does not say."""


def check(type_: str, settings: Mapping[str, Any]) -> None:
    """Raises BackendError."""
    if type_ in RUN_ELSEWHERE:
        raise BackendError(f"type {type_} runs terraform on other machines, where it can't be halted: use another")
    if type_ not in NAMES:
        raise BackendError(f"type {type_!r} is not supported: use one of {', '.join(NAMES)}")
    for name in settings:
        if not _SETTING.fullmatch(name):
            raise BackendError(f"{name!r} can't be the name of a setting: take it out, or correct it")
        if type_ == KUBERNETES and name not in _KUBERNETES_KEYS:
            raise BackendError(
                f"setting {name!r} of type kubernetes is the agent's own: where the state is follows from the task's "
                f"namespace and workspace; take it out, only {', '.join(sorted(_KUBERNETES_KEYS))} may be given"
            )


def as_hcl(settings: Mapping[str, Any]) -> str:
    """For `-backend-config=FILE`."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in settings.items())


def belongs_to(holder: Holder, *, run_id: str, hostname: str, begun_at: float) -> bool:
    """Whether the lock is this run's: USER names the run where the image has no passwd entry for our uid; else, on this
    host, the time does."""
    user, _, host = holder.who.rpartition("@")
    return host == hostname and (user == run_id or holder.created_at >= begun_at)


def holder_in(text: str) -> Holder | None:
    """The one of terraform's "Lock Info"."""
    if "Lock Info:" not in text:
        return None
    fields = dict(_FIELD.findall(text[text.index("Lock Info:") :]))
    if "ID" not in fields or "Who" not in fields:
        return None
    return Holder(fields["ID"], fields["Who"], created_at(fields.get("Created", "")))


def created_at(text: str) -> float:
    """Of a lock, in seconds since the epoch; 0 where it does not say."""
    try:
        # As Go prints it: "2026-05-01 12:00:00.123456789 +0000 UTC".
        return datetime.fromisoformat(text.removesuffix(" UTC").replace(" +0000", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def is_json(text: bytes) -> bool:
    """Of a state: it was written to its end."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case list():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_string(str(key))} = {_value(item)}" for key, item in value.items()) + "}"
        case _:
            raise BackendError(f"a setting can't be a {type(value).__name__}")


def _string(text: str) -> str:
    """Whatever could end it or begin a template is written as its number."""
    return '"' + "".join(char if _PLAIN.fullmatch(char) else _escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
