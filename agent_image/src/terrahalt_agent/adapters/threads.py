"""The threads for what blocks, as a sweep does: all started before any user code.

A run that uses up the processes that its pod may have leaves none for a thread either; an agent that can't start
the one that sweeps dies of it, and nobody learns how the run ended. Called by `app` once.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

THREADS = 4
"""A sweep, a look at how large a source is, and two for what else a run has to read or pack."""


class _Threads(ThreadPoolExecutor):
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for none: one that a dead volume holds would keep the agent's pod for minutes after its last word."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def started_threads() -> ThreadPoolExecutor:
    """None of them is started later."""
    threads = _Threads(THREADS, thread_name_prefix="agent")
    together = threading.Barrier(THREADS + 1)  # so that none is given two of these, and another is never started
    for _ in range(THREADS):
        threads.submit(together.wait)
    together.wait()
    return threads
