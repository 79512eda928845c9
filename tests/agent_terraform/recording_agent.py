"""The agent as it is, which notes beside that which row of the table has decided its run.

Once the file of TRIAL_NO_THREADS_ONCE is there, no thread can be started any more. With TRIAL_NO_CAPABILITIES it has
none, as in a pod, also where the tests run as root.

Started by `harness` instead of `terrahalt_agent`: `python -m tests.agent_terraform.recording_agent FILE`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from dataclasses import replace

from terrahalt_agent.app import main
from terrahalt_agent.core import classify
from terrahalt_agent.core.classify import Ending, Row

_PR_CAPBSET_DROP = 24


def _recorded(row: Row, file: str) -> Row:
    """Only the row that decides is asked for its reason."""

    def reason(ending: Ending) -> str:
        note = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(note, f"{row.observed}\n".encode())
        os.close(note)
        return row.reason(ending)

    return replace(row, reason=reason)


def _refuse_threads_once(file: str) -> None:
    start = threading.Thread.start

    def start_unless(thread: threading.Thread) -> None:
        if os.path.exists(file):
            raise RuntimeError("can't start new thread")
        start(thread)

    setattr(threading.Thread, "start", start_unless)  # noqa: B010


def _go_on_without_capabilities() -> None:
    """Root gets from an exec what is in its bounding set; who may not change that set has nothing to lose."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    del os.environ["TRIAL_NO_CAPABILITIES"]
    os.execv(sys.executable, [sys.executable, "-m", "tests.agent_terraform.recording_agent", *sys.argv[1:]])


if __name__ == "__main__":
    if "TRIAL_NO_CAPABILITIES" in os.environ:
        _go_on_without_capabilities()
    if "TRIAL_NO_THREADS_ONCE" in os.environ:
        _refuse_threads_once(os.environ["TRIAL_NO_THREADS_ONCE"])
    classify.ROWS = tuple(_recorded(row, sys.argv[1]) for row in classify.ROWS)
    main()
