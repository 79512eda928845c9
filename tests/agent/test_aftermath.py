"""What is done about lock and state after a run: only what is proven, and in bounded time whatever hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terrahalt_agent.adapters.backend import LocalBackend
from terrahalt_agent.adapters.cluster_api import ApiError, ApiServer, ClusterApi, UnreachableError
from terrahalt_agent.adapters.kubernetes_backend import StateFullError
from terrahalt_agent.adapters.secret_parts import TooLargeError
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.adapters.workdir import ERRORED_STATE, Prepared
from terrahalt_agent.aftermath import Aftermath
from terrahalt_agent.core.commands import Paths
from terrahalt_agent.core.events import ErroredState, StateKept, TornState
from terrahalt_agent.core.instructions import CheckAftermath
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.execution import Execution
from terrahalt_protocol.messages import Lock, LockCondition, Start
from tests.agent.builders import a_start

QUICK = Times(aftermath_s=0.2, ask_s=0.05, sweep_s=0.05, keep_state_s=0.1, keep_errored_s=0.05)
PATIENCE_S = 10.0
RELEASED = Lock(condition=LockCondition.RELEASED)
UNKNOWN = Lock(condition=LockCondition.UNKNOWN)
HELD = Lock(condition=LockCondition.HELD, id="id-1", who="01JRUN@agent-0", command="release it")
LOOK, RELEASE, READ, KEEP = "look", "release", "read", "keep"
IN_DOUBT = CheckAftermath(may_hold_lock=True)


class ABackend(LocalBackend):
    """Answers with what the test gives, in its order, the last one for ever; an Event is an answer that never comes."""

    def __init__(self, *locks: Lock | Exception | asyncio.Event, frees_locks: bool = True) -> None:
        super().__init__(Path())
        self.frees_locks, self.grants_late = frees_locks, True
        self.locks = list(locks) or [RELEASED]
        self.answers: dict[str, Exception | asyncio.Event | TornState] = {}
        self.asked: list[str] = []

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        answer = self.locks.pop(0) if len(self.locks) > 1 else self.locks[0]
        found = await self._answer(LOOK, answer)
        assert isinstance(found, Lock)
        return found

    def lock_command(self, workspace: str) -> str:
        return f"look at {workspace}"

    async def release(self, workspace: str, lock_id: str) -> None:
        await self._answer(f"{RELEASE} {lock_id}", self.answers.get(RELEASE))

    async def keep_state(self, start: Start) -> str:
        await self._answer(KEEP, self.answers.get(KEEP))
        return "nearly full"

    async def torn_state(self, workspace: str) -> TornState | None:
        found = await self._answer(READ, self.answers.get(READ))
        assert found is None or isinstance(found, TornState)
        return found

    async def _answer(self, asked: str, answer: object) -> object:
        self.asked.append(asked)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Copies(StateCopies):
    """Fails as often as the test says, then keeps."""

    def __init__(self, *failures: ApiError | TooLargeError) -> None:
        super().__init__(ClusterApi(ApiServer("", Path(), Path()), "team-a"), "team-a")
        self.failures = list(failures)
        self.kept: list[str] = []

    async def keep(self, name: str, kind: str, state: bytes, start: Start) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.kept.append(f"{kind} {name}")

    async def fetch_command(self, name: str, file: str) -> str:
        return f"get {name} as {file}"


def an_execution(backend: ABackend | None, module: Path | None = None) -> Execution:
    execution = Execution(a_start(), 0.0)
    execution.backend = backend
    if module is not None:
        paths = Paths(
            module=str(module), home="", variables="", backend="", cli_config="", plugins="", plan="", logs=""
        )
        execution.prepared = Prepared(paths=paths, init_args=())
    return execution


async def the_lock(backend: ABackend | None, check: CheckAftermath = IN_DOUBT) -> Lock:
    async with asyncio.timeout(PATIENCE_S):
        return (await Aftermath(None, QUICK).check(an_execution(backend), check)).lock


# -- the lock


async def test_our_own_lock_is_released_and_its_holder_read_again() -> None:
    backend = ABackend(HELD, RELEASED)
    assert await the_lock(backend) == RELEASED
    assert backend.asked == [LOOK, "release id-1", LOOK]
    backend = ABackend(HELD)
    assert await the_lock(backend) == HELD
    backend = ABackend(HELD, UNKNOWN)
    assert await the_lock(backend) == UNKNOWN


@pytest.mark.parametrize("lock", [RELEASED, UNKNOWN, Lock(condition=LockCondition.RELEASED, id="id-2", who="other@a")])
async def test_a_lock_that_is_not_proven_to_be_ours_is_left_alone(lock: Lock) -> None:
    backend = ABackend(lock)
    assert await the_lock(backend) == lock
    assert backend.asked == [LOOK]


async def test_a_lock_that_a_person_has_to_release_is_told_and_left() -> None:
    backend = ABackend(HELD, frees_locks=False)
    assert await the_lock(backend) == HELD
    assert backend.asked == [LOOK]


async def test_a_look_that_costs_little_is_always_taken_another_one_only_in_doubt() -> None:
    cheap, dear = ABackend(UNKNOWN), ABackend(UNKNOWN, frees_locks=False)
    assert await the_lock(cheap, CheckAftermath()) == UNKNOWN
    assert await the_lock(dear, CheckAftermath()) == RELEASED
    assert (cheap.asked, dear.asked) == ([LOOK], [])
    assert await the_lock(dear, IN_DOUBT) == UNKNOWN
    assert await the_lock(None) == RELEASED


async def test_a_lock_granted_late_is_found_by_a_second_look_and_released() -> None:
    backend = ABackend(RELEASED, HELD, RELEASED)
    began_s = asyncio.get_running_loop().time()
    assert await the_lock(backend, CheckAftermath(may_hold_lock=True, again_after_s=0.1)) == RELEASED
    assert asyncio.get_running_loop().time() - began_s >= 0.1
    assert backend.asked == [LOOK, LOOK, "release id-1", LOOK]


async def test_a_lock_that_goes_with_its_process_is_not_granted_late() -> None:
    backend = ABackend(RELEASED)
    backend.grants_late = False
    assert await the_lock(backend, CheckAftermath(may_hold_lock=True, again_after_s=3600.0)) == RELEASED
    assert backend.asked == [LOOK]


@pytest.mark.parametrize("answer", [ApiError("no"), RuntimeError("our bug"), None])
async def test_a_look_that_fails_or_hangs_is_unknown(answer: Exception | None) -> None:
    said = await the_lock(ABackend(answer or asyncio.Event()))
    assert said == Lock(condition=LockCondition.UNKNOWN, command="look at network"), "a person has to look, and how"


@pytest.mark.parametrize("answer", [ApiError("no"), None])
async def test_a_release_that_fails_or_hangs_leaves_what_is_seen_then(answer: Exception | None) -> None:
    backend = ABackend(HELD)
    backend.answers[RELEASE] = answer or asyncio.Event()
    assert await the_lock(backend) == HELD


async def test_a_frozen_terraform_is_asked_for_its_lock_only_where_that_is_freed() -> None:
    aftermath = Aftermath(None, QUICK)
    for backend, has_lock in (
        (ABackend(HELD), True),
        (ABackend(RELEASED), False),
        (ABackend(UNKNOWN), False),
        (ABackend(HELD, frees_locks=False), False),
        (None, False),
    ):
        assert await aftermath.has_lock(an_execution(backend), 1.0) is has_lock


# -- the state


async def test_a_state_that_can_not_be_copied_is_told_in_bounded_time() -> None:
    for answer, told in (
        (None, StateKept(warning="nearly full")),
        (ApiError("may not"), StateKept("its state could not be copied before it: may not")),
        (StateFullError("too full"), StateKept("too full")),
        (TooLargeError("40 MB"), StateKept(warning="the state was not copied before the apply: 40 MB")),
    ):
        backend = ABackend()
        if answer is not None:
            backend.answers[KEEP] = answer
        assert await Aftermath(None, QUICK).keep_state(an_execution(backend)) == told
        assert backend.asked == [KEEP]
    backend.answers[KEEP] = asyncio.Event()
    async with asyncio.timeout(PATIENCE_S):
        kept = await Aftermath(None, QUICK).keep_state(an_execution(backend))
    assert kept == StateKept("its state could not be copied before it: TimeoutError()")


async def test_a_state_is_read_only_where_it_may_be_torn_and_that_in_bounded_time() -> None:
    backend = ABackend()
    torn = backend.answers[READ] = TornState("remove it")
    aftermath, reads = Aftermath(None, QUICK), CheckAftermath(reads_state=True)
    assert (await aftermath.check(an_execution(backend), CheckAftermath())).torn_state is None
    assert READ not in backend.asked
    assert (await aftermath.check(an_execution(backend), reads)).torn_state == torn
    for backend.answers[READ] in (ApiError("no"), asyncio.Event()):
        async with asyncio.timeout(PATIENCE_S):
            assert (await aftermath.check(an_execution(backend), reads)).torn_state is None


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrahalt_agent.aftermath._AGAIN_S", 0.001)


async def the_errored(copies: Copies | None, module: Path, **times: Any) -> ErroredState | None:
    aftermath = Aftermath(copies, Times(**times))
    async with asyncio.timeout(PATIENCE_S):
        return (await aftermath.check(an_execution(ABackend(), module), CheckAftermath())).errored_state


@pytest.mark.usefixtures("no_pause")
async def test_what_terraform_could_not_save_is_kept_as_soon_as_that_is_possible(tmp_path: Path) -> None:
    assert await the_errored(Copies(), tmp_path) is None
    left = tmp_path / ERRORED_STATE
    left.write_bytes(msgspec.json.encode({"serial": 7}))
    copies = Copies(UnreachableError("down"), UnreachableError("down"))
    found = await the_errored(copies, tmp_path)
    assert copies.kept == ["errored terrahalt-errored-state-01jrun"]
    assert found == ErroredState(str(left), fetch="get terrahalt-errored-state-01jrun as errored.tfstate")
    assert await the_errored(None, tmp_path) == ErroredState(str(left), problem="there is no cluster")


@pytest.mark.usefixtures("no_pause")
async def test_the_lock_is_released_once_the_api_server_that_was_away_answers(tmp_path: Path) -> None:
    (tmp_path / ERRORED_STATE).write_bytes(b"{}")

    class Back(Copies):
        async def keep(self, *arguments: Any) -> None:
            await super().keep(*arguments)
            backend.locks = [HELD, RELEASED]

    backend = ABackend(UnreachableError("down"))
    copies = Back(UnreachableError("down"), UnreachableError("down"))
    async with asyncio.timeout(PATIENCE_S):
        found = await Aftermath(copies, Times()).check(an_execution(backend, tmp_path), IN_DOUBT)
    assert (found.lock, backend.asked) == (RELEASED, [LOOK, f"{RELEASE} id-1", LOOK])


@pytest.mark.usefixtures("no_pause")
async def test_what_can_not_be_kept_is_given_up_with_its_cause(tmp_path: Path) -> None:
    left = tmp_path / ERRORED_STATE
    left.write_bytes(b"{}")
    for failure in (ApiError("may not"), TooLargeError("40 MB")):
        copies = Copies(failure)
        assert await the_errored(copies, tmp_path) == ErroredState(str(left), problem=str(failure))
        assert copies.kept == []
    for_ever = Copies(*(UnreachableError("down") for _ in range(100_000)))
    found = await the_errored(for_ever, tmp_path, keep_errored_s=0.05)
    assert found == ErroredState(str(left), problem="down")
