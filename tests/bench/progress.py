"""One line to standard error for each thing that is begun, with the time since the bench began."""

from __future__ import annotations

import sys
import time

_began = time.monotonic()


def say(text: str) -> None:
    print(f"  {time.monotonic() - _began:6.1f} s  {text}", file=sys.stderr, flush=True)
