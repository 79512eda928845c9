"""What the driver makes of answers that come late."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from terrahalt_agent.adapters.workdir import Environment
from terrahalt_agent.core.events import AgentEvent, RoomRestored, RunEvent, SweepEmptied
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.redaction import Redactor
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


async def test_secrets_that_a_run_reads_when_it_is_over_are_not_known_in_the_next_one() -> None:
    posted: list[AgentEvent] = []
    asked, answered = asyncio.Event(), asyncio.Event()
    execution = Execution(start=cast(Any, SimpleNamespace(run_id="run")), begun_at=0.0)
    redactor = Redactor()

    async def read_environment(start: object) -> Environment:
        asked.set()
        await answered.wait()
        return Environment({}, ("the token of the run before",))

    async def read() -> Environment:
        return await Driver._read_credentials(cast(Any, driver), execution)

    driver = SimpleNamespace(
        _executions={"run": execution},
        _read_credentials=lambda of: read(),
        _redactor=redactor,
        _room=SimpleNamespace(restore=answered.set),
        _workdir=SimpleNamespace(read_environment=read_environment),
        post=posted.append,
    )
    execution.reading = asyncio.create_task(Driver._read_again(cast(Any, driver), execution, "r1"))
    await asked.wait()
    await Driver._restore_room(cast(Any, driver), "run")
    await asyncio.wait([execution.reading])
    assert posted == [RoomRestored("run")]
    assert redactor.redact("the token of the run before") == "the token of the run before"
