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
    """Knows more values as a run brings them; before that it changes nothing."""

    def __init__(self) -> None:
        self._forms: list[str] = []
        """Longest first, so that a secret inside of another one leaves no rest."""

    def add(self, values: Iterable[str]) -> None:
        forms = set(self._forms).union(*(_forms(value) for value in values))
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def forget(self) -> None:
        """All values: what they were of is over, and nothing of it leaves the pod any more."""
        self._forms = []

    @property
    def longest_chars(self) -> int:
        return len(self._forms[0]) if self._forms else 0

    def redact(self, text: str) -> str:
        found = [form for form in self._forms if form in text]  # far cheaper than one pattern of all forms
        return re.sub("|".join(map(re.escape, found)), _MARK, text) if found else text

    def redact_beginning(self, text: str, chars: int) -> str:
        """At most the first `chars` of the text, marked where it was cut. A secret that the cut divides goes whole,
        and what comes long after the cut costs nothing."""
        if len(text) <= chars:
            return self.redact(text)
        window = text[: chars + self.longest_chars]
        found = [form for form in self._forms if form in window]
        shown, at = [], 0
        for match in re.finditer("|".join(map(re.escape, found)), window) if found else ():
            if match.start() >= chars:
                break
            shown += [window[at : match.start()], _MARK]
            at = match.end()
        return "".join([*shown, window[at:chars], " ..."])


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
