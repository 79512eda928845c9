"""Keys that are to be looked at: each by one worker at a time, once however often it was woken.

A key that is woken while it is being worked on is worked on again. An error puts it back after a
growing wait, and never stops the others. No rule of the product here. Run by `app`; woken by `world`, `effects`
and `reconciler`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable

from terrahalt_operator.errors import ClusterError, Conflict, Deposed, NotFound

log = logging.getLogger(__name__)

BACKOFF_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)

MANY, MANY_WITHIN_S = 5, 0.25
"""Urgent keys, and in what time, that make a burst."""
MAKES_WAY_S, MAKES_WAY_AT_MOST_S, GOES_ON_S = 0.1, 5.0, 1.0
"""After each of them; in a row; and after that, whatever comes."""

Key = tuple[str, ...]


class Worklist:
    def __init__(self, *, is_urgent: bool = False) -> None:
        """`is_urgent`: its looks are brief, and wait for nothing."""
        self._is_urgent = is_urgent
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, tuple[float, asyncio.Handle]] = {}
        """With when they ring: a handle of uvloop that is due at once does not know."""
        self._failures: dict[Key, int] = {}
        self._urgent: deque[float] = deque(maxlen=MANY)
        self._way = asyncio.Event()
        """Cleared while what is here makes way."""
        self._way.set()
        self._way_timer: asyncio.Handle | None = None
        self._makes_way_since = self._goes_on_until = -math.inf
        self._turn = asyncio.Lock()
        self._workers = 0
        self._is_closed = False

    def close(self) -> None:
        """Each worker ends, at once or when what it is at has ended."""
        self._is_closed = True
        self._way.set()
        for _ in range(self._workers):
            self._ready.put_nowait(())

    def wake(self, key: Key) -> None:
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def wake_after(self, key: Key, delay_s: float) -> None:
        """The earliest of several such calls counts."""
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        if (timer := self._timers.get(key)) is not None:
            rings_at, handle = timer
            if rings_at <= at:
                return
            handle.cancel()
        self._timers[key] = at, loop.call_at(at, self._ring, key)

    def make_way(self) -> None:
        """Something urgent has come, which is done elsewhere. Where many do, as in a burst of cancels, nothing is begun
        here until no more come, or for MAKES_WAY_AT_MOST_S, and then for GOES_ON_S all is: what would be written of the
        first ones holds up the last ones."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._urgent.append(now)
        is_much = len(self._urgent) == MANY and now - self._urgent[0] <= MANY_WITHIN_S
        if not is_much or now < self._goes_on_until or self._is_closed:
            return
        if self._way.is_set():
            self._makes_way_since = now
        if self._way_timer is not None:
            self._way_timer.cancel()
        if now >= self._makes_way_since + MAKES_WAY_AT_MOST_S:
            self._goes_on_until = now + GOES_ON_S
            self._way.set()
        else:
            self._way.clear()
            self._way_timer = loop.call_later(MAKES_WAY_S, self._way.set)

    async def run_worker(self, work: Callable[[Key], Awaitable[None]]) -> None:
        """One of several; runs until `close`."""
        self._workers += 1
        while True:
            key = await self._ready.get()
            # One look in a turn of the loop: ten thousand in a row when an operator begins to lead, or each worker's at
            # a large pool, would hold up the renewal of its Lease.
            if self._is_urgent:
                await asyncio.sleep(0)
            else:
                async with self._turn:
                    await self._way.wait()
                    await asyncio.sleep(0)
            if self._is_closed:
                return
            self._queued.discard(key)
            self._active.add(key)
            try:
                await work(key)
                self._failures.pop(key, None)
            except ClusterError as error:
                self._retry(key, str(error), expected=isinstance(error, Conflict | NotFound | Deposed))
            except Exception:
                log.exception("%s: our own error; trying again", "/".join(key))
                self._retry(key, "", expected=True)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.wake(key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.wake(key)

    def _retry(self, key: Key, why: str, *, expected: bool) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        if not expected or failures > 3:
            log.warning("%s: %s; trying again in %s s", "/".join(key), why, delay_s)
        self.wake_after(key, delay_s)
