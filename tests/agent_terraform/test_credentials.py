"""Credentials that change while a run is under way: what has started keeps the old ones, what starts gets the new."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from terrahalt_protocol.messages import (
    ConfigFrom,
    CredentialsRefreshed,
    EnvFrom,
    Outcome,
    RefreshCredentials,
    Source,
    Values,
)
from tests.agent.fake_api import FakeApi, a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    AgentProcess,
    Operator,
    a_held_lock,
    an_agent,
    an_operator,
    api_access,
    command_lines,
)
from tests.agent_terraform.modules import local_exec
from tests.agent_terraform.test_several_runs import ANOTHER, NEXT_ID, end_of, fresh

OLD, NEW = "the old token", "the new token"
NEEDS = 'variable "password" { sensitive = true }\nresource "terraform_data" "b" { input = sha256(var.password) }\n'
ENV_FROM = (EnvFrom(secret="of-the-pool"), EnvFrom(secret="of-the-task", prefix="TF_VAR_"))


@dataclass
class Stage:
    """An agent, its operator, and the Secrets that it reads."""

    api: FakeApi
    agent: AgentProcess
    operator: Operator
    applied: Path
    """What the apply has found in its environment."""

    def put(self, token: str) -> None:
        self.api.put_secret("of-the-pool", CLOUD_TOKEN=token)
        self.api.put_secret("of-the-task", password=f"{token} of the database")

    async def start(self, **how: Any) -> None:
        """Its apply needs the variable, and writes the token down."""
        applies = local_exec(f'printf %s "$CLOUD_TOKEN" > {self.applied}; echo applied with $CLOUD_TOKEN')
        await self.operator.start({"main.tf": f"{NEEDS}\n{applies}"}, env_from=ENV_FROM, **how)

    async def until_planning(self) -> int:
        """The plan's process."""

        def look() -> list[int]:
            return [pid for pid in self.agent.descendants() if any(" plan " in line for line in command_lines([pid]))]

        return int((await self.agent.until(look))[0])

    async def refresh(self, refresh: str = "r1") -> CredentialsRefreshed:
        """What the agent says first about it."""
        await self.operator.send(RefreshCredentials(epoch=1, refresh=refresh))

        def look() -> list[CredentialsRefreshed]:
            said = [m for m in self.operator.received if isinstance(m, CredentialsRefreshed)]
            return [message for message in said if message.refresh == refresh]

        found = await self.operator.until(look)
        assert isinstance(found[0], CredentialsRefreshed)
        return found[0]

    async def until_applied(self) -> str:
        """The token that the apply has found."""
        result = await self.operator.result()
        assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Applied"), result
        assert self.agent.descendants() == []
        return self.applied.read_text()


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@asynccontextmanager
async def a_stage(tmp_path: Path, authority: Authority, **env: str) -> AsyncIterator[Stage]:
    async with a_fake_api() as api:
        env |= api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            stage = Stage(api, agent, operator, tmp_path / "applied")
            stage.put(OLD)
            yield stage


@pytest.fixture
async def stage(tmp_path: Path, authority: Authority) -> AsyncIterator[Stage]:
    async with a_stage(tmp_path, authority) as stage:
        yield stage


async def test_a_refresh_leaves_the_plan_that_runs_alone_and_its_apply_gets_the_new_values(stage: Stage) -> None:
    with a_held_lock(stage.agent.states):
        await stage.start()
        plan = await stage.until_planning()
        stage.put(NEW)
        assert await stage.refresh() == CredentialsRefreshed(refresh="r1")
        assert await stage.until_planning() == plan
        assert environment_of(plan)["CLOUD_TOKEN"] == OLD
    assert await stage.until_applied() == NEW
    async with an_operator(stage.agent, epoch=2) as successor:
        assert successor.hello.refreshed == "r1"
    assert stage.agent.log.count("its credentials were read again") == 1
    said = stage.agent.log + stage.agent.termination_message + repr(stage.operator.received)
    assert "applied with [redacted]" in said
    # A plan has its variables inside: terraform says that it ignores another value, and says both.
    assert OLD not in said
    assert NEW not in said


async def test_a_refresh_changes_no_variable(stage: Stage) -> None:
    files = {"main.tf": NEEDS + local_exec(f"printf %s '${{sha256(var.password)}}' > {stage.applied}")}
    values = Values(source=Source(inline=files), variables_from=(ConfigFrom(secret="of-the-task"),))
    with a_held_lock(stage.agent.states):
        await stage.operator.start({}, source=Source(), values=values)
        await stage.until_planning()
        (file,) = stage.agent.work.glob("*/variables.tfvars.json")
        stage.put(NEW)
        await stage.refresh()
        assert OLD in file.read_text()
        assert NEW not in file.read_text()
    assert await stage.until_applied() == hashlib.sha256(f"{OLD} of the database".encode()).hexdigest()


async def test_without_a_refresh_every_step_gets_what_the_run_has_read(stage: Stage) -> None:
    with a_held_lock(stage.agent.states):
        await stage.start()
        await stage.until_planning()
        stage.put(NEW)
    assert await stage.until_applied() == OLD


async def test_what_can_not_be_read_is_told_and_what_was_read_before_stays(stage: Stage) -> None:
    with a_held_lock(stage.agent.states):
        await stage.start()
        plan = await stage.until_planning()
        stage.api.objects.clear()
        said = await stage.refresh()
        assert said.problem == "envFrom: Secret of-the-pool was not found in namespace team-a"
        assert await stage.until_planning() == plan
    assert await stage.until_applied() == OLD


async def test_a_read_that_began_before_a_refresh_does_not_undo_it_when_it_ends_after_it(stage: Stage) -> None:
    stage.api.holds_back = asyncio.Event()
    late = stage.api.holds_back
    await stage.start()
    await stage.agent.until(lambda: stage.api.tokens)
    stage.put(NEW)
    assert await stage.refresh() == CredentialsRefreshed(refresh="r1")
    late.set()
    assert await stage.until_applied() == NEW


async def test_an_agent_that_waits_for_a_task_reads_when_it_comes(stage: Stage) -> None:
    assert await stage.refresh() == CredentialsRefreshed(refresh="r1")
    assert stage.api.tokens == [], "it has asked for Secrets that no run needs"
    stage.put(NEW)
    await stage.start()
    assert await stage.until_applied() == NEW


async def test_a_read_that_gets_no_answer_does_not_hold_up_the_end_of_the_agent(stage: Stage) -> None:
    with a_held_lock(stage.agent.states):
        await stage.start()
        await stage.until_planning()
        asked = len(stage.api.tokens)
        stage.api.may_answer.clear()
        await stage.operator.send(RefreshCredentials(epoch=1, refresh="r1"))
        await stage.agent.until(lambda: len(stage.api.tokens) > asked)
        await stage.operator.cancel()
        assert (await stage.operator.result()).outcome is Outcome.CANCELLED
        await stage.operator.ack()
        assert await stage.agent.ended(10) == 0, "it waits 15 s for an answer"
    stage.api.may_answer.set()


async def test_the_next_run_of_an_agent_has_what_its_secrets_hold_by_then(tmp_path: Path, authority: Authority) -> None:
    async with a_stage(tmp_path, authority, TERRAHALT_MAX_TASKS="2") as stage:
        await stage.start()
        assert await stage.until_applied() == OLD
        await stage.operator.ack()
        assert (await fresh(stage.operator)).refreshed == ""
        stage.put(NEW)
        asked = len(stage.api.tokens)
        assert await stage.refresh() == CredentialsRefreshed(refresh="r1")
        assert len(stage.api.tokens) == asked, "it has asked for Secrets that no run needs"
        await stage.start(run_id=NEXT_ID, **ANOTHER)
        end = await end_of(stage.operator, NEXT_ID)
        assert end.result is not None
        assert end.result.outcome is Outcome.SUCCEEDED, end.result.message
        assert stage.applied.read_text() == NEW
        said = stage.agent.log + stage.agent.termination_message + repr(stage.operator.received)
    assert said.count("applied with [redacted]") == 2
    assert OLD not in said
    assert NEW not in said
