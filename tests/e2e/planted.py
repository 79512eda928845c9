"""Secrets that are planted, each with a core that nothing else has, and the search for them.

The core is made of letters and digits of ASCII, so that JSON, URLs, HCL and shells write it as it is whatever they do
to the rest of the value; base64 and hex do not, so their forms of it are looked for too. Knows nothing of how the
product takes secrets out. Pure, but for its randomness.
"""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_CORE_CHARS = 20

SHAPES: Mapping[str, str] = {
    "token": "CORE",
    "quoted": 'it\'s "CORE" \\back\\',
    "unicode": "pä-CORE-日本-€",
    "url": "postgres://u:CORE@db.example/x?a=1&b=<2>",
    "template": "${a}-CORE-%{b}-$(id)-`id`",
    "lines": "-----BEGIN KEY-----\nMIIEvCOREQIBADANBgkqhkiG\nsecond/line+of=it\n-----END KEY-----\n",
    "spaced": "  three words CORE ends so \n",
    "document": '{"type": "service_account", "key": "CORE", "of": {"all": [1, "x"]}}',
    "base64": "CORE+/9a/+==",
    "long": "x" * 3000 + "CORE" + "y" * 3000,
}
"""What values look like."""


def a_core() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_CORE_CHARS))


def a_number() -> str:
    return "".join(secrets.choice("123456789") for _ in range(_CORE_CHARS))


@dataclass(frozen=True)
class Planted:
    way: str
    """By which it comes in."""
    value: str
    core: str

    def forms(self) -> Iterator[bytes]:
        core = self.core.encode()
        yield core
        yield core.hex().encode()
        yield core.hex().upper().encode()
        for shift in range(3):
            # Without the characters that hold bits of the neighbours, too.
            text = base64.b64encode(b"\0" * shift + core).rstrip(b"=")
            yield text[shift + (shift > 0) : len(text) - ((shift + len(core)) % 3 > 0)]


def plant(way: str, shape: str = "token", *, core: str = "") -> Planted:
    core = core or a_core()
    return Planted(way, SHAPES[shape].replace("CORE", core), core)


@dataclass(frozen=True)
class Place:
    """Something that was looked at, with what was there."""

    name: str
    content: bytes


class Found(NamedTuple):
    place: str
    way: str


def search(planted: Iterable[Planted], places: Iterable[Place]) -> set[Found]:
    forms = [(form, secret.way) for secret in planted for form in secret.forms()]
    return {Found(place.name, way) for place in places for form, way in forms if form in place.content}
