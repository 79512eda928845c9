"""What the driver makes of answers that come late."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_agent.adapters.workdir import Environment
from terrahalt_agent.core.events import AftermathChecked, AgentEvent, RoomRestored, RunEvent, SweepEmptied
from terrahalt_agent.core.instructions import Exit, InterruptTerraform
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.redaction import Redactor
from terrahalt_agent.driver import Driver
from terrahalt_agent.execution import Execution
from terrahalt_protocol.messages import Lock, LockCondition


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


@pytest.mark.parametrize(
    ("says", "can_keep", "kept"),
    [(False, True, ["its end"]), (True, True, ["its end", "its end, and a lock was released"]), (True, False, [])],
)
async def test_the_log_is_kept_while_the_lock_is_looked_at_and_again_where_that_had_something_to_say(
    says: bool, can_keep: bool, kept: list[str]
) -> None:
    """Neither waits for the other; what can't be kept is not tried twice, as each try may take seconds."""
    posted: list[RunEvent] = []
    secrets: list[str] = []
    tries, is_kept = 0, asyncio.Event()
    pod_log = SimpleNamespace(given=1, text="its end")

    async def keep_log(start: object) -> bool:
        nonlocal tries
        tries += 1
        if can_keep:
            secrets.append(pod_log.text)
        is_kept.set()
        return can_keep

    async def check(of: object, how: object) -> AftermathChecked:
        await is_kept.wait()
        if says:
            pod_log.given, pod_log.text = 2, "its end, and a lock was released"
        return AftermathChecked(Lock(condition=LockCondition.RELEASED), None)

    driver = SimpleNamespace(
        _executions={"run": SimpleNamespace(start=None)},
        _aftermath=SimpleNamespace(check=check),
        _keep_log=keep_log,
        _pod_log=pod_log,
        _post_of=lambda run_id, event: posted.append(event),
    )
    await asyncio.wait_for(Driver._check_aftermath(cast(Any, driver), "run", cast(Any, None)), 5)
    assert secrets == kept
    assert tries == max(1, len(kept))
    assert posted == [AftermathChecked(Lock(condition=LockCondition.RELEASED), None, log_kept=can_keep)]


async def test_a_cancel_interrupts_first_and_then_opens_the_connection_that_the_end_needs_and_never_waits_for() -> None:
    did: list[str] = []
    execution = Execution(start=cast(Any, None), begun_at=0.0)

    async def get_ready() -> None:
        did.append("connects")
        await asyncio.Event().wait()

    driver = SimpleNamespace(
        _executions={"run": execution},
        _logs=SimpleNamespace(get_ready=get_ready),
        _signal=lambda run_id, number: did.append(number.name),
        _spawn=lambda run_id, what, work: asyncio.ensure_future(work),
        exited=asyncio.Future[int](),
    )
    Driver._carry_out_for(cast(Any, driver), "run", InterruptTerraform())
    await asyncio.sleep(0)
    assert did == ["SIGINT", "connects"]
    Driver._carry_out(cast(Any, driver), Exit())
    assert execution.connecting is not None
    await asyncio.wait([execution.connecting], timeout=5)
    assert execution.connecting.cancelled()


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
