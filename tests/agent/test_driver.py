"""What the driver makes of answers that come late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from terrahalt_agent.core.events import RunEvent, SweepEmptied
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.driver import Driver
from terrahalt_agent.execution import Execution


async def test_the_answer_of_a_sweep_that_was_given_up_for_another_is_dropped() -> None:
    posted: list[RunEvent] = []
    driver = SimpleNamespace(
        _descendants=SimpleNamespace(sweep=lambda within_s: SimpleNamespace(alive=(), killed=0)),
        _times=Times(),
        _post_of=lambda run_id, event: posted.append(event),
    )
    execution = Execution(start=cast(Any, None), begun_at=0.0, sweeps=2)
    await Driver._sweep(cast(Any, driver), "run", execution, 1)
    assert posted == []
    await Driver._sweep(cast(Any, driver), "run", execution, 2)
    assert posted == [SweepEmptied(0)]
