"""That no thread holds up the agent's end, whatever it waits for."""

from __future__ import annotations

import asyncio
import threading

from terrahalt_agent.adapters.threads import started_threads


def test_a_thread_that_a_dead_volume_holds_does_not_hold_up_the_end_of_the_loop() -> None:
    held, has_ended = threading.Event(), threading.Event()

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(started_threads())
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            held.wait(10)
            has_ended.set()

        asyncio.get_running_loop().run_in_executor(None, wait)
        begun.wait()

    try:
        asyncio.run(serve())
        assert not has_ended.is_set()
    finally:
        held.set()
