"""What the driver makes of answers that come late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_agent.adapters.workdir import Environment
from terrahalt_agent.aftermath import Aftermath
from terrahalt_agent.core.events import AftermathChecked, AgentEvent, RoomRestored, RunEvent, SweepEmptied
from terrahalt_agent.core.instructions import CheckAftermath, Exit, InterruptTerraform, PrepareRun
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.redaction import Redactor
from terrahalt_agent.driver import Driver
from terrahalt_agent.execution import Execution
from terrahalt_protocol.messages import Lock, LockCondition

RELEASED = Lock(condition=LockCondition.RELEASED)
SHORT = CheckAftermath(may_hold_lock=False, again_after_s=None, reads_state=False)


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


END, RELEASE = "its end", "its end, and a lock was released"


class Ending:
    """A driver whose log can be kept or not, and the looks at what a run has left."""

    def __init__(self, *, says: bool = False, can_keep: bool = True, waits_for_log: bool = False) -> None:
        self.does: list[str] = []
        self.posted: list[RunEvent] = []
        self._says, self._can_keep, self._waits_for_log = says, can_keep, waits_for_log
        self._is_kept = asyncio.Event()
        self._pod_log = SimpleNamespace(given=1)
        self._text = END
        self._aftermath = SimpleNamespace(check=self._check, has_little_to_say=Aftermath.has_little_to_say)
        self._executions = {"run": SimpleNamespace(start=None, prepared=None)}

    async def _keep_log(self, _start: object) -> bool:
        self.does.append(f"keeps: {self._text}" if self._can_keep else "can't keep it")
        self._is_kept.set()
        return self._can_keep

    async def _check(self, *_: object) -> AftermathChecked:
        if self._waits_for_log:
            await self._is_kept.wait()
        if self._says:
            self._pod_log.given, self._text = 2, RELEASE
        self.does.append("has looked")
        return AftermathChecked(RELEASED, None)

    def _post_of(self, _run_id: str, event: RunEvent) -> None:
        self.posted.append(event)

    async def check(self, check: CheckAftermath) -> None:
        async with asyncio.timeout(5):
            await Driver._check_aftermath(cast(Any, self), "run", check)


@pytest.mark.parametrize(
    ("says", "can_keep", "does"),
    [
        (False, True, [f"keeps: {END}", "has looked"]),
        (True, True, [f"keeps: {END}", "has looked", f"keeps: {RELEASE}"]),
        (True, False, ["can't keep it", "has looked"]),
    ],
)
async def test_the_log_is_kept_while_the_lock_is_looked_at_and_again_where_that_had_something_to_say(
    says: bool, can_keep: bool, does: list[str]
) -> None:
    """Neither waits for the other; what can't be kept is not tried twice, as each try may take seconds."""
    ending = Ending(says=says, can_keep=can_keep, waits_for_log=True)
    await ending.check(SHORT)
    assert ending.does == does
    assert ending.posted == [AftermathChecked(RELEASED, None, log_kept=can_keep)]


@pytest.mark.parametrize(
    "check",
    [
        replace(SHORT, may_hold_lock=True),
        replace(SHORT, reads_state=True),
        replace(SHORT, again_after_s=5.0),
    ],
)
async def test_where_there_will_be_something_to_say_the_log_is_kept_once_that_was_said(check: CheckAftermath) -> None:
    """Else a log without its end would stand as the whole one, if the pod ends in between."""
    ending = Ending(says=True)
    await ending.check(check)
    assert ending.does == ["has looked", f"keeps: {RELEASE}"]
    assert ending.posted == [AftermathChecked(RELEASED, None, log_kept=True)]


async def test_a_log_is_kept_after_a_state_that_could_not_be_saved_which_may_take_minutes(tmp_path: Path) -> None:
    (tmp_path / "errored.tfstate").write_text("{}")
    ending = Ending(says=True)
    ending._executions["run"].prepared = SimpleNamespace(paths=SimpleNamespace(module=str(tmp_path)))
    await ending.check(SHORT)
    assert ending.does == ["has looked", f"keeps: {RELEASE}"]


async def test_an_error_of_ours_in_keeping_the_log_does_not_cost_the_look_at_the_lock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def keep(*_: object) -> None:
        raise KeyError("of ours")

    driver = SimpleNamespace(
        _logs=SimpleNamespace(keep=keep),
        _pod_log=SimpleNamespace(flush=lambda _: True, packed=lambda: b""),
        _times=Times(),
    )
    assert await Driver._keep_log(cast(Any, driver), cast(Any, SimpleNamespace(run_id="run"))) is False
    assert "its log is not kept" in caplog.text


async def test_a_cancel_interrupts_first_and_then_opens_the_connection_that_the_end_needs_and_never_waits_for() -> None:
    did: list[str] = []

    async def get_ready() -> None:
        did.append("connects")
        await asyncio.Event().wait()

    driver = SimpleNamespace(
        _connecting=None,
        _reserving=None,
        _executions={"run": SimpleNamespace(reading=None)},
        _logs=SimpleNamespace(get_ready=get_ready),
        _signal=lambda run_id, number: did.append(number.name),
        _spawn=lambda run_id, what, work: asyncio.ensure_future(work),
        exited=asyncio.Future[int](),
    )
    Driver._carry_out_for(cast(Any, driver), "run", InterruptTerraform())
    await asyncio.sleep(0)
    connecting: Any = driver._connecting
    Driver._carry_out_for(cast(Any, driver), "run", InterruptTerraform())
    assert did == ["SIGINT", "connects", "SIGINT"]
    Driver._carry_out(cast(Any, driver), Exit())
    await asyncio.wait([connecting], timeout=5)
    assert connecting.cancelled()


async def test_a_run_that_begins_takes_the_room_of_its_last_report_and_waits_for_no_disk(tmp_path: Path) -> None:
    path, prepared = tmp_path / "termination-log", asyncio.Event()
    tasks: dict[str, asyncio.Task[None]] = {}

    async def prepare(execution: Execution) -> None:
        prepared.set()

    def spawn(_run_id: str, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks[what] = asyncio.create_task(work)
        return tasks[what]

    driver = SimpleNamespace(
        _pod_log=SimpleNamespace(begin=lambda: None),
        _termination_log=str(path),
        _executions={},
        _connecting=None,
        _spawn=spawn,
        _prepare=prepare,
        _watch=lambda _: None,
        exited=asyncio.get_running_loop().create_future(),
    )
    disk = threading.Event()
    asyncio.get_running_loop().set_default_executor(executor := ThreadPoolExecutor(max_workers=1))
    executor.submit(disk.wait)  # as if it were slow: what is to be written waits for it
    try:
        Driver._carry_out_for(cast(Any, driver), "run", PrepareRun(cast(Any, None)))
        assert path.read_text().startswith("run run: its agent has written no report")
        await asyncio.wait_for(prepared.wait(), 5)
        assert not tasks["reserve"].done()
        Driver._carry_out(cast(Any, driver), Exit())
        await asyncio.wait([tasks["reserve"]], timeout=5)
        assert tasks["reserve"].cancelled()
    finally:
        disk.set()


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
