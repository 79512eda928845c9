"""Takes secret values out of every text that leaves the pod.

Values of 6 bytes and more, as they are, inside JSON, as base64 and in URLs; shorter ones would take
half of a log away. What user code has transformed otherwise is not found. One door: `driver` for
reports, `adapters.pod_log` for lines. Pure.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MIN_SECRET_BYTES = 6
_MIN_LINE_CHARS = 16
_MARK = "[redacted]"


class Redactor:
    """Knows more values as runs bring them; before that it changes nothing."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, values: Iterable[str]) -> None:
        for value in values:
            self._forms |= _forms(value)
        if self._forms:
            longest_first = sorted(self._forms, key=lambda form: (-len(form), form))
            self._pattern = re.compile("|".join(re.escape(form) for form in longest_first))

    def redact(self, text: str) -> str:
        return self._pattern.sub(_MARK, text) if self._pattern is not None else text


def _forms(value: str) -> set[str]:
    forms: set[str] = set()
    for text in {value, value.strip()}:
        if len(text.encode()) < MIN_SECRET_BYTES:
            continue
        forms |= {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        forms |= {quote(text, safe=""), quote(text), quote_plus(text)}
        forms |= _base64_forms(text.encode())
        if "\n" in text:  # a log is read line by line
            forms |= {line.strip() for line in text.splitlines() if len(line.strip()) >= _MIN_LINE_CHARS}
    return forms


def _base64_forms(raw: bytes) -> set[str]:
    """Alone, and inside of something longer at any of the three alignments."""
    forms: set[str] = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms |= {encode(raw).decode(), encode(raw).decode().rstrip("=")}
        for shift in (1, 2):
            # The characters that also hold bits of the neighbours are not ours to know.
            text = encode(b"\0" * shift + raw).decode().rstrip("=")
            forms.add(text[shift + 1 : len(text) - (1 if (shift + len(raw)) % 3 else 0)])
        forms.add(encode(raw[: len(raw) // 3 * 3]).decode())
    return {form for form in forms if len(form) >= MIN_SECRET_BYTES}
