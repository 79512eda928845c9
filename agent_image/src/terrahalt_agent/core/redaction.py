"""Takes secret values out of every text that leaves the pod.

Values of 6 bytes and more, as they are, inside JSON, as base64 and in URLs; shorter ones would take
half of a log away. Of a value that is a JSON document, each one inside of it too, as terraform lays such texts
out anew. What user code has transformed otherwise is not found. One door: `driver` for reports, `adapters.pod_log`
for lines. Pure.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Set
from urllib.parse import quote, quote_plus

from terrahalt_agent.core.variables import scalars

MIN_SECRET_BYTES = 6
_MIN_LINE_CHARS = 16
_MANY = 200
_BEGINNING_CHARS = 6
_MARK = "[redacted]"
_ESCAPED_BY_GO = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
"""By its encoder of JSON, which is terraform's jsonencode."""


class Redactor:
    """Knows more values as a run brings them; before that it changes nothing."""

    def __init__(self) -> None:
        self._forms: list[str] = []
        """Longest first, so that a secret inside of another one leaves no rest."""
        self._by_beginning: dict[str, list[str]] = {}
        """The same, where there are many; those that are shorter than one by the empty one."""

    def add(self, values: Iterable[str]) -> None:
        self._know(set(self._forms).union(*(_forms(value) for value in values)))

    def forget(self) -> None:
        """All values: what they were of is over, and nothing of it leaves the pod any more."""
        self._know(set())

    def _know(self, forms: Set[str]) -> None:
        ordered, by_beginning = sorted(forms, key=_longest_first), dict[str, list[str]]()
        for form in ordered if len(ordered) > _MANY else ():
            beginning = form[:_BEGINNING_CHARS] if len(form) >= _BEGINNING_CHARS else ""
            by_beginning.setdefault(beginning, []).append(form)
        self._forms, self._by_beginning = ordered, by_beginning  # each whole: the log's thread reads them meanwhile

    @property
    def longest_chars(self) -> int:
        return len(self._forms[0]) if self._forms else 0

    def redact(self, text: str) -> str:
        found = self._found(text)
        return re.sub("|".join(map(re.escape, found)), _MARK, text) if found else text

    def redact_beginning(self, text: str, chars: int) -> str:
        """At most the first `chars` of the text, marked where it was cut. A secret that the cut divides goes whole,
        and what comes long after the cut costs nothing."""
        if len(text) <= chars:
            return self.redact(text)
        window = text[: chars + self.longest_chars]
        found = self._found(window)
        shown, at = [], 0
        for match in re.finditer("|".join(map(re.escape, found)), window) if found else ():
            if match.start() >= chars:
                break
            shown += [window[at : match.start()], _MARK]
            at = match.end()
        return "".join([*shown, window[at:chars], " ..."])

    def _found(self, text: str) -> list[str]:
        """Those that are in the text, longest first. A search for each is far cheaper than one pattern of all; of many,
        only those whose beginning is there are searched for."""
        if not (known := self._by_beginning):
            return [form for form in self._forms if form in text]
        there = {b for at in range(len(text)) if (b := text[at : at + _BEGINNING_CHARS]) in known} | {""}
        return sorted((f for b in there for f in known.get(b, ()) if f in text), key=_longest_first)


def _longest_first(form: str) -> tuple[int, str]:
    return -len(form), form


def _forms(value: str) -> set[str]:
    forms: set[str] = set()
    value = value.encode(errors="replace").decode()  # JSON may hold what no text can
    for text in {value, value.strip()}:
        if len(text.encode()) < MIN_SECRET_BYTES:
            continue
        forms |= {text, *_json_forms(text)}
        forms |= {quote(text, safe=""), quote(text), quote_plus(text)}
        forms |= _base64_forms(text.encode())
        if "\n" in text:  # a log is read line by line
            forms |= {line.strip() for line in text.splitlines() if len(line.strip()) >= _MIN_LINE_CHARS}
    return forms.union(*(_forms(inside) for inside in _values_of(value)))


def _json_forms(text: str) -> set[str]:
    """Of Python and of Go, and once more in quotes: terraform shows a command that has JSON in it as one text."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    once = {plain, json.dumps(text)[1:-1], plain.translate(_ESCAPED_BY_GO)}
    return once | {json.dumps(form, ensure_ascii=False)[1:-1] for form in once}


def _values_of(document: str) -> Iterable[str]:
    """Texts and numbers, where it is one of JSON."""
    if not document.lstrip().startswith(("{", "[")):
        return ()
    try:
        return scalars(json.loads(document, parse_int=str, parse_float=str))
    except (ValueError, RecursionError):
        return ()


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
