"""States in real backends, well and broken: what becomes of state and lock is looked at in the backend itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.core.ladder import Times
from terrahalt_protocol.messages import (
    Action,
    Backend,
    ConfigFrom,
    LockCondition,
    Outcome,
    Result,
    Source,
    StateCondition,
)
from tests import engine
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    RUN_ID,
    AgentProcess,
    Operator,
    an_agent,
    an_operator,
    api_access,
    command_lines,
    program,
    until,
)
from tests.agent_terraform.modules import local_exec, sleeping
from tests.backends.bucket import Bucket, S3Server, a_bucket, an_s3_server
from tests.backends.faults import GET, LOCK, POST, UNLOCK, Fault
from tests.backends.http_state import HttpState, an_http_state
from tests.backends.postgres import Database, Server, a_database, a_postgres

pytestmark = pytest.mark.terraform

Place = HttpState | Bucket | Database
TYPES = {HttpState: "http", Bucket: "s3", Database: "pg"}
ONE = {"main.tf": local_exec("true")}


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with an_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with a_postgres() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[HttpState]:
    async with an_http_state() as state:
        yield state


@pytest.fixture
async def bucket(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[Bucket]:
    async with a_bucket(s3_server, f"{tmp_path.name}.tfstate") as found:
        yield found


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """The backend whose type the test is parametrized with; no other one is started for it."""
    if request.param == "http":
        async with an_http_state() as state:
            yield state
    elif request.param == "s3":
        async with a_bucket(request.getfixturevalue("s3_server"), f"{tmp_path.name}.tfstate") as found:
            yield found
    else:
        name = "".join(char if char.isalnum() else "_" for char in tmp_path.name.lower())
        async with a_database(request.getfixturevalue("postgres"), name) as database:
            yield database


every_type = pytest.mark.parametrize("place", list(TYPES.values()), indirect=True)


class Runs:
    """Starts runs whose state is in a backend, each on an agent of its own."""

    def __init__(self, folder: Path, authority: Authority, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._authority = authority
        self._stack = stack
        self._count = 0

    async def start(self, place: Place, files: dict[str, str], **fields: Any) -> tuple[AgentProcess, Operator]:
        """What is secret of the settings comes from a Secret."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        api = await self._stack.enter_async_context(a_fake_api())
        api.put_secret("states", **place.secret_config)
        env = api_access(folder, self._authority, api.url)
        agent = await self._stack.enter_async_context(an_agent(folder, self._authority, **env))
        operator = await self._stack.enter_async_context(an_operator(agent))
        backend = Backend(
            type=TYPES[type(place)],
            config=place.config,
            config_from=(ConfigFrom(secret="states"),),
            source=Source(inline=files),
        )
        await operator.start({}, **({"source": Source(), "backend": backend, "cancel_grace_s": 1} | fields))
        return agent, operator


@pytest.fixture
async def runs(tmp_path: Path, authority: Authority) -> AsyncIterator[Runs]:
    async with AsyncExitStack() as stack:
        yield Runs(tmp_path, authority, stack)


def lock_of(result: Result) -> tuple[LockCondition, str]:
    return result.lock.condition, result.lock.id


def waiting_for(gate: Path) -> dict[str, str]:
    """A resource that says "begun", and is done once the gate is there."""
    return {"main.tf": local_exec(f"echo begun; until test -e {gate}; do sleep 0.02; done")}


def open_(gate: Path) -> None:
    gate.touch()


def kill(agent: AgentProcess, step: str) -> None:
    """SIGKILL to terraform, which nobody of ours has sent."""
    (terraform,) = [pid for pid, line in command_lines_of(agent).items() if f" {step} " in line]
    os.kill(terraform, signal.SIGKILL)


def command_lines_of(agent: AgentProcess) -> dict[int, str]:
    return {pid: "".join(command_lines([pid])) for pid in agent.descendants()}


def is_locked(place: Place) -> bool:
    return place.lock is not None


# -- backends that are well


@every_type
async def test_an_apply_leaves_its_state_in_the_backend_its_lock_free_and_no_secret_anywhere(
    runs: Runs, place: Place, tmp_path: Path
) -> None:
    code = local_exec(f"tr '\\\\0' ' ' < /proc/$PPID/cmdline > {tmp_path}/line; env > {tmp_path}/env")
    agent, operator = await runs.start(place, {"main.tf": code})
    result = await operator.result()
    assert (result.outcome, result.state) == (Outcome.SUCCEEDED, StateCondition.COMPLETE), result.message
    assert (place.resources, is_locked(place)) == (["terraform_data.a"], False)
    assert lock_of(result) == (LockCondition.RELEASED, "")
    assert not list(agent.states.iterdir()), "the agent's own backend was used"
    settings = agent.work / RUN_ID / "backend.hcl"
    assert settings.stat().st_mode & 0o777 == 0o600
    seen = agent.log + repr(operator.received) + (tmp_path / "line").read_text() + (tmp_path / "env").read_text()
    for secret in place.secret_config.values():
        if secret != "terrahalt":
            assert secret not in seen


@every_type
async def test_a_cancelled_apply_leaves_its_state_in_the_backend_and_its_lock_free(runs: Runs, place: Place) -> None:
    agent, operator = await runs.start(place, sleeping())
    await agent.until_logged(r"\(local-exec\): begun")
    assert is_locked(place)
    await operator.cancel()
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")
    assert (place.resources, is_locked(place)) == (["terraform_data.a tainted"], False)
    assert lock_of(result) == (LockCondition.RELEASED, "")
    assert agent.descendants() == []


@pytest.mark.parametrize("place", ["pg"], indirect=True)
async def test_a_workspace_beside_others_is_made_and_then_found(runs: Runs, place: Place) -> None:
    assert isinstance(place, Database)
    for workspace in ("other", "network", "network"):
        agent, operator = await runs.start(place, ONE, workspace=workspace)
        assert (await operator.result()).outcome is Outcome.SUCCEEDED, agent.log
    assert place.workspaces == {"other", "network"}
    assert "0 added, 0 changed" in agent.log, "the state of the run before was not found"


@pytest.mark.parametrize("type_", ["cloud", "local", "kubernetes"])
async def test_a_backend_that_is_refused_starts_nothing(agent: AgentProcess, operator: Operator, type_: str) -> None:
    backend = Backend(type=type_, config={"namespace": "x"}, source=Source(inline=ONE))
    await operator.start({}, source=Source(), backend=backend)
    result = await operator.result()
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "BackendInvalid", None)
    assert list(agent.work.iterdir()) == []


# -- backends that break


HANGS = {
    # Whether the lock is held afterwards, and what is in the state.
    GET: (True, []),
    LOCK: (False, []),
    POST: (True, []),
    UNLOCK: (True, ["terraform_data.a"]),
}
CANCELLED_WITHIN_S = 30.0
"""1 s of grace, 10 for the providers, 8 for a second SIGINT, 5 for SIGKILL, and what this machine needs for it."""


async def started_and_hanging(runs: Runs, place: Place, verb: str, gate: Path) -> tuple[AgentProcess, Operator]:
    """A run whose terraform waits for the answer of its backend: in the plan, or in an apply that was let through."""
    faults = place.faults
    if verb in (GET, LOCK):
        faults.fail(LOCK, Fault.HANG)
        agent, operator = await runs.start(place, ONE, action=Action.PLAN)
        await faults.until_met(LOCK)
        if verb == GET:  # init reads too
            faults.fail(GET, Fault.HANG)
            faults.mend(LOCK)
    else:
        agent, operator = await runs.start(place, waiting_for(gate))
        await agent.until_logged(r"\(local-exec\): begun")
        faults.fail(verb, Fault.HANG)
        open_(gate)
    await faults.until_met(verb)
    return agent, operator


async def cancelled(agent: AgentProcess, operator: Operator) -> Result:
    await operator.cancel()
    result = await operator.result(CANCELLED_WITHIN_S)
    assert agent.descendants() == []
    return result


async def test_a_backend_that_does_not_answer_holds_up_no_cancel_and_the_lock_that_is_left_is_not_called_free(
    runs: Runs, tmp_path: Path
) -> None:
    async def one(verb: str) -> None:
        is_held, resources = HANGS[verb]
        async with an_http_state() as http:
            result = await cancelled(*await started_and_hanging(runs, http, verb, tmp_path / f"gate-{verb}"))
            assert (verb, result.outcome, result.lock.condition) == (verb, Outcome.CANCELLED, LockCondition.UNKNOWN)
            assert f"{engine.NAME} force-unlock ID" in result.lock.command
            assert "ignores the ID" in result.lock.command
            assert (verb, is_locked(http), http.resources) == (verb, is_held, resources)
            # A request that was on its way arrives: of a LOCK nobody is left who would unlock.
            http.faults.mend()
            await until(lambda: is_locked(http) == (verb != UNLOCK))

    async with asyncio.TaskGroup() as tasks:  # each of them takes all of the ladder's time
        for verb in HANGS:
            tasks.create_task(one(verb))


@every_type
async def test_an_init_whose_backend_does_not_answer_is_ended(runs: Runs, place: Place) -> None:
    place.faults.fail(GET, Fault.HANG)
    agent, operator = await runs.start(place, ONE)
    await place.faults.until_met(GET)
    result = await cancelled(agent, operator)
    assert (result.outcome, result.exit_code) in {(Outcome.CANCELLED, 1), (Outcome.CANCELLED, -9)}
    assert (result.state, operator.reports[-1].plan) == (StateCondition.COMPLETE, None)
    assert not (agent.work / RUN_ID / "logs/plan.jsonl").exists()


@pytest.mark.parametrize("verb", [GET, LOCK, POST, UNLOCK])
@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.CUT])
async def test_what_a_backend_refuses_fails_the_run_and_its_lock_is_called_what_it_is(
    runs: Runs, http: HttpState, verb: str, fault: Fault, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    if verb in (GET, LOCK):
        http.faults.fail(verb, fault)
    agent, operator = await runs.start(http, waiting_for(gate))
    if verb in (POST, UNLOCK):
        await agent.until_logged(r"\(local-exec\): begun")
        http.faults.fail(verb, fault)
        open_(gate)
    result = await operator.result()
    assert result.outcome is Outcome.FAILED
    is_unsure = verb in (LOCK, UNLOCK)
    assert result.lock.condition is (LockCondition.UNKNOWN if is_unsure else LockCondition.RELEASED), result
    assert bool(result.lock.command) == is_unsure
    assert (http.lock is not None) == (verb == UNLOCK)
    left = agent.module / "errored.tfstate"
    assert left.exists() == (verb == POST)
    if verb == POST:
        assert (result.reason, result.state) == ("NotPersisted", StateCondition.NOT_PERSISTED)
        assert str(left) in result.message
        assert [r["name"] for r in json.loads(left.read_text())["resources"]] == ["a"]


async def test_a_killed_terraform_leaves_its_lock_in_the_bucket_which_is_found_and_released_by_the_command_given(
    runs: Runs, bucket: Bucket
) -> None:
    agent, operator = await runs.start(bucket, {"main.tf": local_exec("echo begun; kill -9 $PPID; sleep 300")})
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "TerraformKilled")
    assert bucket.lock is not None, "looking has removed it"
    assert lock_of(result) == (LockCondition.HELD, bucket.lock["ID"])
    assert result.lock.who == bucket.lock["Who"]
    assert agent.descendants() == []
    env = {"PATH": f"{program().parent}:/usr/bin:/bin", "HOME": str(agent.folder)}
    typed = ["sh", "-c", result.lock.command]
    await asyncio.to_thread(subprocess.run, typed, cwd=agent.module, env=env, input=b"yes\n", check=True, timeout=60)
    assert not is_locked(bucket)


async def test_a_lock_that_terraform_could_not_release_and_does_not_speak_of_is_not_called_free(
    runs: Runs, bucket: Bucket
) -> None:
    _, operator = await runs.start(bucket, ONE)
    assert (await operator.result()).outcome is Outcome.SUCCEEDED
    bucket.faults.fail(LOCK, Fault.HANG)
    _, operator = await runs.start(bucket, ONE, action=Action.PLAN)
    await bucket.faults.until_met(LOCK)
    bucket.faults.fail(GET, Fault.CUT)  # of the state, and of the lock that is to be released
    bucket.faults.mend(LOCK)
    result = await operator.result()
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "PlanFailed", 1)
    assert "error loading state" in result.message
    assert bucket.lock is not None
    assert result.lock.condition is LockCondition.UNKNOWN
    assert result.lock.command


async def test_a_bucket_that_does_not_answer_is_unknown_in_bounded_time(
    runs: Runs, bucket: Bucket, tmp_path: Path
) -> None:
    agent, operator = await runs.start(bucket, waiting_for(tmp_path / "gate"))
    await agent.until_logged(r"\(local-exec\): begun")
    bucket.faults.fail(GET, Fault.HANG)
    kill(agent, "apply")
    result = await operator.result()
    assert result.lock.condition is LockCondition.UNKNOWN
    assert f"TF_WORKSPACE=network {engine.NAME} force-unlock ID" in result.lock.command
    assert bucket.lock is not None
    assert command_lines(agent.descendants()) == []


async def test_an_agent_that_stands_still_while_it_looks_at_a_lock_tells_how_to_look(
    runs: Runs, bucket: Bucket, tmp_path: Path
) -> None:
    agent, operator = await runs.start(bucket, waiting_for(tmp_path / "gate"))
    await agent.until_logged(r"\(local-exec\): begun")
    bucket.faults.fail(GET, Fault.HANG)
    kill(agent, "apply")
    await bucket.faults.until_met(GET)
    await agent.freeze()
    await asyncio.sleep(Times().aftermath_s + Times().backstop_s)  # nothing but time passes
    agent.process.send_signal(signal.SIGCONT)
    result = await operator.result()
    assert result.lock.condition is LockCondition.UNKNOWN
    assert f"TF_WORKSPACE=network {engine.NAME} force-unlock ID" in result.lock.command
    assert bucket.lock is not None
    await until(lambda: command_lines(agent.descendants()) == [])


async def test_a_lock_granted_after_the_death_of_who_asked_for_it_is_found_in_the_bucket(
    runs: Runs, bucket: Bucket
) -> None:
    _, operator = await runs.start(bucket, ONE)
    assert (await operator.result()).outcome is Outcome.SUCCEEDED
    bucket.faults.fail(LOCK, Fault.HANG)
    agent, operator = await runs.start(bucket, ONE, action=Action.PLAN, run_id=f"{RUN_ID}2")
    await bucket.faults.until_met(LOCK)
    bucket.faults.fail(GET, Fault.HANG)
    kill(agent, "plan")
    await bucket.faults.until_met(GET)
    assert not is_locked(bucket)
    bucket.faults.mend(LOCK)
    await until(lambda: is_locked(bucket))
    bucket.faults.mend()
    result = await operator.result()
    assert bucket.lock is not None
    assert lock_of(result) == (LockCondition.HELD, bucket.lock["ID"])


@pytest.mark.parametrize("place", ["pg"], indirect=True)
async def test_a_killed_terraform_leaves_no_lock_in_a_database(runs: Runs, place: Place, tmp_path: Path) -> None:
    agent, operator = await runs.start(place, waiting_for(tmp_path / "gate"))
    await agent.until_logged(r"\(local-exec\): begun")
    assert is_locked(place)
    kill(agent, "apply")
    result = await operator.result()
    assert (result.reason, result.lock.condition) == ("TerraformKilled", LockCondition.RELEASED)
    await until(lambda: not is_locked(place))


@pytest.mark.parametrize("place", ["pg"], indirect=True)
async def test_a_database_that_does_not_answer_holds_up_no_cancel(runs: Runs, place: Place, tmp_path: Path) -> None:
    result = await cancelled(*await started_and_hanging(runs, place, POST, tmp_path / "gate"))
    assert (result.outcome, result.lock.condition) == (Outcome.CANCELLED, LockCondition.RELEASED)
    await until(lambda: not is_locked(place))


# -- locks of others


@pytest.mark.parametrize("place", ["http", "s3"], indirect=True)
@pytest.mark.parametrize("end", ["cancelled", "killed"])
async def test_a_lock_of_another_run_is_neither_removed_nor_taken_for_this_ones(
    runs: Runs, place: Place, end: str, tmp_path: Path
) -> None:
    agent, other = await runs.start(place, waiting_for(tmp_path / "gate"))
    await agent.until_logged(r"\(local-exec\): begun")
    anothers = place.lock
    assert anothers is not None
    agent, operator = await runs.start(place, ONE, action=Action.PLAN, run_id=f"{RUN_ID}2")
    await place.faults.until_asked(LOCK)
    await place.faults.until_asked(LOCK)  # so the first one was refused
    if end == "cancelled":
        await operator.cancel(run_id=f"{RUN_ID}2")
    else:
        kill(agent, "plan")
    result = await operator.result(CANCELLED_WITHIN_S)
    assert result.outcome is (Outcome.CANCELLED if end == "cancelled" else Outcome.FAILED)
    assert result.exit_code in (1, -9)
    assert place.lock == anothers
    is_unsure = end == "killed" and isinstance(place, HttpState)
    assert result.lock.condition is (LockCondition.UNKNOWN if is_unsure else LockCondition.RELEASED)
    assert result.lock.id == (anothers["ID"] if end == "killed" and isinstance(place, Bucket) else "")
    open_(tmp_path / "gate")
    assert (await other.result()).outcome is Outcome.SUCCEEDED
    assert not is_locked(place)
