"""The final report in the pod's termination message, and the proof that the run wrote it.

User code can write to `/dev/termination-log`, so what is read back there counts only with an HMAC
by a key that user code never sees. The key comes from a secret of the installation and the run ID:
an operator that was restarted derives it again. Pure; called by both sides.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

import msgspec

from terrahalt_protocol.messages import Report, Result

MAX_TERMINATION_BYTES = 3_500
"""Kubernetes keeps 4,096 bytes of a termination message; the rest is room for its own cut."""


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    report: str
    hmac: str


@lru_cache(maxsize=4_096)
def report_key(installation_secret: bytes, run_id: str) -> str:
    """The key of one run, in hex."""
    return hmac.new(installation_secret, b"report:" + run_id.encode(), hashlib.sha256).hexdigest()


def seal(report: Report, key: str) -> bytes:
    """The termination message for a final report: at most MAX_TERMINATION_BYTES.

    What does not fit is left out from the end of the open addresses, then from the message;
    outcome, reason, state, lock and the count always stay.
    """
    sealed = _sign(report, key)
    while len(sealed) > MAX_TERMINATION_BYTES:
        shorter = _shorten(report)
        if shorter is None:
            raise ValueError(f"the report of run {report.run_id} can't be cut to {MAX_TERMINATION_BYTES} bytes")
        report, sealed = shorter, _sign(shorter, key)
    return sealed


def unseal(message: str, key: str, run_id: str) -> Report | None:
    """The report that this run wrote, or None for anything else."""
    try:
        signed = msgspec.json.decode(message, type=_Signed)
        if not hmac.compare_digest(signed.hmac, _digest(signed.report, key)):
            return None
        report = msgspec.json.decode(signed.report, type=Report)
    except (msgspec.DecodeError, UnicodeError, TypeError):
        return None
    return report if report.run_id == run_id and report.result is not None else None


def _sign(report: Report, key: str) -> bytes:
    text = msgspec.json.encode(report).decode()
    return msgspec.json.encode(_Signed(report=text, hmac=_digest(text, key)))


def _digest(text: str, key: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


def _shorten(report: Report) -> Report | None:
    result: Result | None = report.result
    if result is None:
        return None
    if result.open_addresses:
        kept = result.open_addresses[: len(result.open_addresses) // 2]
        return msgspec.structs.replace(report, result=msgspec.structs.replace(result, open_addresses=kept))
    if report.message:
        return msgspec.structs.replace(report, message="")
    if len(result.message) > 100:
        cut = result.message[: len(result.message) // 2]
        return msgspec.structs.replace(report, result=msgspec.structs.replace(result, message=cut))
    return None
