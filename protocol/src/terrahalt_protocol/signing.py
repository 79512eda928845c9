"""The final report in the pod's termination message, and the proof that the run wrote it.

User code can write to `/dev/termination-log`, so what is read back there counts only with an HMAC
by a key that user code never sees. The key comes from a secret of the installation and the run ID:
an operator that was restarted derives it again. Kubernetes may keep only the beginning of the message, so what is
essential comes first there and is signed by itself. Pure; called by both sides.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from terrahalt_protocol.messages import Report

MAX_TERMINATION_BYTES = 3_500
"""Kubernetes keeps 4,096 bytes of a termination message; the rest is room for its own cut."""
LEAST_BYTES = 800
"""Kubernetes keeps 12,288 bytes for all containers of a pod, and of each one the first bytes: so many of each of 15."""
_SHORT_CHARS, _SHORTEST_CHARS = 100, 40
"""Of a text, where there is no room for all of it."""
_LEAST = re.compile(r'\{"least":\{"report":(\{.*?\}),"hmac":"([0-9a-f]{64})"\}')
"""What `_begin` writes, wherever the message is cut behind it."""


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    report: str
    hmac: str


@lru_cache(maxsize=4_096)
def report_key(installation_secret: bytes, run_id: str) -> str:
    """The key of one run, in hex."""
    return hmac.new(installation_secret, b"report:" + run_id.encode(), hashlib.sha256).hexdigest()


def seal(report: Report, key: str) -> bytes:
    """The termination message for a final report: at most MAX_TERMINATION_BYTES.

    One JSON object of `report` and `hmac`, which is all that version 0.1.0 reads. One of more than LEAST_BYTES has
    `least` before them: as much of the report as LEAST_BYTES hold, so that a message that was cut is a report too;
    except where what has to stay is so long that there is no room for both.
    What does not fit is left out from the open addresses, the last ones first, then from the messages; outcome,
    reason, state, lock, exit code, times and the count always stay. Raises ValueError where they don't fit.
    """
    if len(whole := _sign(_encoded(report), key)) <= LEAST_BYTES:
        return whole
    texts = [_encoded(shorter) for shorter in _ever_shorter(report)]
    beginnings = (_begin(text, key) for text in texts)
    least = next((begin for begin in beginnings if len(begin) <= LEAST_BYTES), _begin(texts[-1], key))
    for begin in (least, b"{"):
        for text in texts:
            sealed = begin + _sign(text, key).removeprefix(b"{")
            if len(sealed) <= MAX_TERMINATION_BYTES:
                return sealed
    raise ValueError(f"the report of run {report.run_id} can't be cut to {MAX_TERMINATION_BYTES} bytes")


def unseal(message: str, key: str, run_id: str) -> Report | None:
    """The report that this run wrote, as much of it as is there, or None for anything else."""
    for text, digest in _signed_parts(message):
        try:
            if not hmac.compare_digest(digest, _digest(text, key)):
                continue
            report = msgspec.json.decode(text, type=Report)
        except (msgspec.DecodeError, UnicodeError, TypeError):
            continue
        if report.run_id == run_id and report.result is not None:
            return report
    return None


def _signed_parts(message: str) -> Iterator[tuple[str, str]]:
    """Texts and what is said to be their HMAC, the fullest first."""
    try:
        signed = msgspec.json.decode(message, type=_Signed)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # it was cut, or is no report at all
    else:
        yield signed.report, signed.hmac
    if (least := _LEAST.match(message)) is not None:
        yield least[1], least[2]


def _begin(text: str, key: str) -> bytes:
    """The beginning of a message of which this is the essential part."""
    return f'{{"least":{{"report":{text},"hmac":"{_digest(text, key)}"}},'.encode()


def _sign(text: str, key: str) -> bytes:
    return msgspec.json.encode(_Signed(report=text, hmac=_digest(text, key)))


def _digest(text: str, key: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


def _encoded(report: Report) -> str:
    return msgspec.json.encode(_terse(report)).decode()


def _terse(value: object) -> object:
    """Without what is as by default: no version takes what is missing for anything else."""
    if not isinstance(value, msgspec.Struct):
        return value
    config = value.__struct_config__
    said: dict[str, object] = {} if config.tag_field is None else {config.tag_field: config.tag}
    names, defaults = value.__struct_fields__, value.__struct_defaults__  # `msgspec.structs.fields` takes milliseconds
    for name, default in zip(names, (msgspec.NODEFAULT,) * (len(names) - len(defaults)) + defaults, strict=True):
        if (told := getattr(value, name)) != default:
            said[name] = _terse(told)
    return said


def _ever_shorter(report: Report) -> Iterator[Report]:
    """Itself first."""
    shorter: Report | None = report
    while shorter is not None:
        yield shorter
        shorter = _shorten(shorter)


def _shorten(report: Report) -> Report | None:
    """By as little as is worth a try; None: nothing is left to be cut."""
    if (result := report.result) is None:
        return None
    if report.message or report.resources_current:  # of a run that goes on; the result has a message of its own
        return replace(report, message="", resources_current="")
    if addresses := result.open_addresses:
        return _with(report, open_addresses=addresses[: len(addresses) * 3 // 4])
    if len(result.message) > _SHORT_CHARS:
        return _with(report, message=_half(result.message))
    outputs = result.outputs
    if outputs is not None and len(outputs.problem) > _SHORT_CHARS:  # without any they would be there
        return _with(report, outputs=replace(outputs, problem=_half(outputs.problem)))
    if len(result.message) > _SHORTEST_CHARS:
        return _with(report, message=_half(result.message))
    return None


def _with(report: Report, **of_result: Any) -> Report:
    assert report.result is not None
    return replace(report, result=replace(report.result, **of_result))


def _half(text: str) -> str:
    return text[: len(text) // 2]
