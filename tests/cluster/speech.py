"""Says something to the person in front: on standard error, which leaves standard output for results.

Whole lines, also from several threads. Used by every module of the tool.
"""

from __future__ import annotations

import sys
import threading

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
