"""Histories that once failed, as text in `kept.txt`: `make test` plays each again.

A head line names what it shows; then come the setting and the moves. Pure; called by `__main__` and the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.simulation.history import MOVES, History
from tests.simulation.simulation import Setting

FILE = Path(__file__).with_name("kept.txt")


@dataclass(frozen=True, slots=True)
class Kept:
    what: str
    history: History


def read(text: str) -> Iterator[Kept]:
    """In their order. What comes before the first head is for people. Raises ValueError."""
    for section in ("\n" + text).split("\n# ")[1:]:
        what, *lines = section.strip().splitlines()
        if not lines or not lines[0].startswith("{"):
            raise ValueError(f"{what}: the line after the head is the setting, as JSON")
        words = " ".join(lines[1:]).split()
        if unknown := set(words[::2]) - set(MOVES):
            raise ValueError(f"{what}: no such moves: {', '.join(sorted(unknown))}")
        moves = tuple(zip(words[::2], map(int, words[1::2]), strict=True))
        yield Kept(what, History(Setting(**json.loads(lines[0])), moves))


def as_text(what: str, history: History) -> str:
    lines, line = [f"# {what}", json.dumps(asdict(history.setting))], ""
    for name, pick in history.moves:
        if len(line) + len(name) > 100:
            lines.append(line)
            line = ""
        line += f"{' ' if line else ''}{name} {pick}"
    return "\n".join([*lines, line]) + "\n"
