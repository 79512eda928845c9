"""Rounds on a cluster that others use too: which count, and which don't.

A round in which the operator was replaced measured the replacement; it is left out, said aloud, and taken
again, a few times. Called by `cancel`, `start` and `hand_over`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime

import aiohttp

from tests.bench.figures import Part
from tests.bench.kubernetes_api import ApiError
from tests.bench.progress import say
from tests.bench.system import NoOperator, System

SPARE_ROUNDS = 3


async def take(part: Part, system: System, rounds: int, one: Callable[[int], Awaitable[str]]) -> None:
    """Calls `one` until it has succeeded `rounds` times; it gives what to say, and records only at its end."""
    taken = 0
    for number in range(rounds + SPARE_ROUNDS):
        if taken == rounds:
            return
        before = await system.identity()
        try:
            text = await one(number)
        except (TimeoutError, ApiError, aiohttp.ClientError) as error:
            text = str(error) or type(error).__name__
            failed = True
            with contextlib.suppress(TimeoutError, ApiError, aiohttp.ClientError):
                await system.clear()
        else:
            failed = False
            taken += 1
        try:
            after = await system.identity()
        except NoOperator:
            after = "none"
        if before != after:
            note = f"round {number + 1}: the operator was replaced meanwhile, by others: {before} -> {after}"
            part.notes.append(note)
            say(f"{part.name}: {note}")
        if failed:
            part.notes.append(f"round {number + 1} does not count: {text}")
        say(f"{part.name}: round {number + 1}: {text}")
    if taken < rounds:
        part.notes.append(f"only {taken} of {rounds} rounds could be taken")


def moment(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
