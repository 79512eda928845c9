"""Tells a person what a long run does: which step of how many, about how long, how long it took.

Writes to standard error, so that standard output stays free for results. It decides nothing. Used by
every module that has a step worth waiting for.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()


def say(text: str) -> None:
    with _lock:
        print(text, file=sys.stderr, flush=True)


def spoken(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


class Progress:
    """Counts the steps of one run. The total may grow: what a step finds out can ask for more steps."""

    def __init__(self) -> None:
        self._total = 0
        self._begun = 0
        self._began_at = time.monotonic()

    def expect(self, steps: int) -> None:
        self._total += steps

    @contextmanager
    def step(self, title: str, *, cold: str = "") -> Iterator[None]:
        """`cold` says how long it takes when nothing was built or downloaded before, like "6 min"."""
        with _lock:
            self._begun += 1
            self._total = max(self._total, self._begun)
            label = f"[{self._begun}/{self._total}]"
        say(f"{label} {title}" + (f" (about {cold})" if cold else ""))
        began = time.monotonic()
        try:
            yield
        except BaseException:
            say(f"{label} {title}: stopped after {spoken(time.monotonic() - began)}")
            raise
        say(f"{label} {title}: done in {spoken(time.monotonic() - began)}")

    def finish(self, text: str) -> None:
        say(f"{text} ({spoken(time.monotonic() - self._began_at)} in all)")
