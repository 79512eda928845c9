"""Tells a person what a long run does: which step of how many, about how long, how long it took.

It decides nothing. Used by every module that has a step worth waiting for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import cache
from tests.cluster.cache import Product
from tests.cluster.speech import say, spoken


class Progress:
    """Counts the steps of one run. The total may grow: what a step finds out can ask for more steps."""

    def __init__(self) -> None:
        self._total = 0
        self._begun = 0
        self._began_at = time.monotonic()
        self._lock = threading.Lock()

    def expect(self, steps: int) -> None:
        self._total += steps

    @contextmanager
    def step(self, title: str, *, cold: str = "") -> Iterator[None]:
        """`cold` says how long it takes when nothing was built or downloaded before, like "6 min"."""
        with self._lock:
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

    def make(self, product: Product) -> Path:
        """The finished folder; a step of its own only when it has to be built."""
        if product.is_built:
            return product.path
        with self.step(product.title, cold=product.cold):
            return cache.make(product)

    def finish(self, text: str) -> None:
        say(f"{text} ({spoken(time.monotonic() - self._began_at)} in all)")


def program_of(product: Product) -> Path:
    """Of a product that is named after its program. Takes the lock of the cache only where it has to be built."""
    if not product.is_built:
        with cache.lock():
            Progress().make(product)
    return product.path / product.name
