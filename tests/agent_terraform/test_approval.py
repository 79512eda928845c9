"""Two agents and a plan between them: what the first has planned, the second applies, or nothing."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from terrahalt_protocol.messages import (
    Approval,
    ApprovedPlan,
    ConfigFrom,
    EnvFrom,
    Outcome,
    PlanSummary,
    Report,
    Source,
    StateCondition,
    Step,
    Values,
)
from tests.agent.fake_api import FakeApi, a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import RUN_ID, AgentProcess, Operator, an_agent, an_operator, api_access
from tests.agent_terraform.modules import local_exec

pytestmark = pytest.mark.terraform

SECRET = f"terrahalt-plan-{RUN_ID.lower()}"
APPLY_RUN = "01JAPPLYRUN"


class Task:
    """Each of its runs on a pod of its own: nothing but the states is left of the one before."""

    def __init__(self, folder: Path, authority: Authority, api: FakeApi) -> None:
        self.folder, self._authority, self.api = folder, authority, api
        self._env = api_access(folder, authority, api.url)

    @asynccontextmanager
    async def fresh_agent(self, **env: str) -> AsyncIterator[tuple[AgentProcess, Operator]]:
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        async with (
            an_agent(self.folder, self._authority, **self._env, **env) as agent,
            an_operator(agent) as operator,
        ):
            yield agent, operator

    async def plan(self, source: Source, env: dict[str, str] | None = None, **fields: Any) -> Report:
        async with self.fresh_agent(**env or {}) as (agent, operator):
            await operator.start({}, source=Source(), approval=Approval(source=source), **fields)
            final = await operator.final_report()
            assert agent.descendants() == []
            await agent.until_logged(r"AwaitingApproval: |Failed \(")
            return final

    async def apply(self, plan: Report, source: Source, env: dict[str, str] | None = None, **fields: Any) -> Report:
        async with self.fresh_agent(**env or {}) as (agent, operator):
            approval = Approval(source=source, plan=approved(plan))
            await operator.start({}, source=Source(), approval=approval, run_id=APPLY_RUN, **fields)
            final = await operator.final_report()
            assert agent.descendants() == []
            assert Step.PLAN not in {report.step for report in operator.reports}
            assert not list(agent.work.glob("*/logs/plan*")), "terraform has planned anew"
            return final

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    @property
    def state(self) -> bytes | None:
        file = self.folder / "states" / "network.tfstate"
        return file.read_bytes() if file.exists() else None

    def kept(self, name: str) -> str:
        packed = gzip.decompress(base64.b64decode(self.api.secret(SECRET)["data"]["plan"]))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read().decode()


def approved(plan: Report) -> ApprovedPlan:
    assert plan.result is not None
    assert plan.result.kept_plan is not None, plan.result
    return ApprovedPlan(run_id=plan.run_id, digest=plan.result.kept_plan.digest, summary=plan.plan or PlanSummary())


def assert_expired(final: Report, words: str) -> None:
    assert final.result is not None
    assert (final.result.outcome, final.result.reason) == (Outcome.FAILED, "PlanExpired"), final.result
    assert final.result.state is StateCondition.COMPLETE
    assert words in final.result.message


@pytest.fixture
async def task(tmp_path: Path, authority: Authority) -> AsyncIterator[Task]:
    async with a_fake_api() as api:
        yield Task(tmp_path, authority, api)


async def test_a_plan_waits_with_nothing_applied_and_then_that_plan_is_applied(task: Task) -> None:
    source = Source(inline={"main.tf": local_exec(f"touch {task.folder}/applied")})
    plan = await task.plan(source)
    assert plan.result is not None
    assert (plan.result.reason, plan.plan) == ("AwaitingApproval", PlanSummary(add=1))
    assert not (task.folder / "applied").exists()
    assert task.state is None or json.loads(task.state)["resources"] == []
    assert "terraform_data.a will be created" in task.log
    assert "terraform_data.a will be created" in task.kept("plan.txt")
    final = await task.apply(plan, source)
    assert final.result is not None
    assert (final.result.outcome, final.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert (final.plan, final.resources_done) == (PlanSummary(add=1), 1)
    assert (task.folder / "applied").exists()


async def test_providers_of_the_apply_are_those_of_the_plans_lock_file(task: Task, providers: dict[str, str]) -> None:
    code = """
terraform {
  required_providers {
    time = { source = "hashicorp/time" }
  }
}
resource "time_sleep" "none" { create_duration = "0s" }
"""
    source = Source(inline={"main.tf": code})
    plan = await task.plan(source, providers)
    lock_file = task.kept(".terraform.lock.hcl")
    assert "hashicorp/time" in lock_file
    final = await task.apply(plan, source, providers)
    assert final.result is not None
    assert final.result.reason == "Applied", final.result
    assert next(task.folder.glob("work/*/module/.terraform.lock.hcl")).read_text() == lock_file


async def test_paths_in_a_plan_are_those_of_its_apply(task: Task) -> None:
    """terraform writes them into the plan, and would find nothing there if another run had another folder."""
    code = local_exec("cat ${abspath(path.module)}/note > ${self.input}").replace(
        "provisioner", 'input = "${abspath(path.module)}/copied"\n  provisioner'
    )
    source = Source(inline={"main.tf": code, "note": "as planned"})
    final = await task.apply(await task.plan(source), source)
    assert final.result is not None
    assert final.result.reason == "Applied", final.result
    assert next(task.folder.glob("work/*/module/copied")).read_text() == "as planned"


async def test_a_plan_of_a_state_that_has_changed_since_is_not_applied(task: Task) -> None:
    source = Source(inline={"main.tf": local_exec(f"touch {task.folder}/applied")})
    plan = await task.plan(source)
    async with task.fresh_agent() as (_, operator):
        await operator.start({"main.tf": 'resource "terraform_data" "other" {}'}, run_id="01JOTHER")
        assert (await operator.result()).outcome is Outcome.SUCCEEDED
    before = task.state
    assert_expired(await task.apply(plan, source), "Saved plan is stale")
    assert task.state == before
    assert not (task.folder / "applied").exists()


async def test_a_source_that_has_changed_since_is_not_applied(task: Task) -> None:
    task.api.put("configmaps", "source", data={"main.tf": local_exec(f"touch {task.folder}/applied")})
    source = Source(config_map="source")
    plan = await task.plan(source)
    before = task.state
    task.api.put("configmaps", "source", data={"main.tf": local_exec(f"touch {task.folder}/changed")})
    final = await task.apply(plan, source)
    assert_expired(final, "the source has changed since the plan was made; nothing was changed: plan anew")
    assert task.state == before
    assert not list(task.folder.glob("*ed")), "something was applied"


async def test_what_is_not_the_approved_plan_is_not_applied(task: Task) -> None:
    source = Source(inline={"main.tf": local_exec(f"touch {task.folder}/applied")})
    plan = await task.plan(source)
    secret = task.api.secret(SECRET)
    packed = bytearray(gzip.decompress(base64.b64decode(secret["data"]["plan"])))
    packed[600] ^= 1
    task.api.put("secrets", SECRET, data={"plan": base64.b64encode(gzip.compress(packed)).decode()})
    assert_expired(await task.apply(plan, source), "is not the plan that was approved")
    assert not (task.folder / "applied").exists()
    assert not list(task.folder.glob("work/*/logs/init*")), "terraform was started"


async def test_what_people_read_of_a_plan_has_no_secret_in_it(task: Task) -> None:
    task.api.put_secret("vars", key="a secret of theirs")
    code = 'variable "key" {}\nresource "terraform_data" "a" { input = "it is ${var.key}!" }'
    fields: dict[str, Any] = {"env_from": (EnvFrom(secret="vars", prefix="TF_VAR_"),)}
    plan = await task.plan(Source(inline={"main.tf": code}), **fields)
    assert plan.result is not None
    assert plan.result.kept_plan is not None
    for text in (task.log, task.kept("plan.txt")):
        assert "it is [redacted]!" in text
        assert "a secret of theirs" not in text


async def test_the_variables_of_an_approved_plan_are_those_it_was_made_with_and_stay_secret(task: Task) -> None:
    task.api.put_secret("vars", key="a secret of theirs")
    source = Source(inline={"main.tf": 'variable "key" {}\n' + local_exec("echo it is ${var.key}!; exit 3")})
    values = Values(source=source, variables_from=(ConfigFrom(secret="vars"),))
    plan = await task.plan(source, values=values)
    task.api.put_secret("vars", key="another of theirs")
    final = await task.apply(plan, source, values=values)
    assert final.result is not None
    assert final.result.reason == "ApplyFailed"
    for text in (task.log, repr(final), task.kept("plan.txt")):
        assert "a secret of theirs" not in text
        assert "another of theirs" not in text
    assert "it is [redacted]!" in task.log


async def test_a_cancel_while_the_plan_is_being_kept_leaves_nothing_that_waits(task: Task) -> None:
    async with task.fresh_agent() as (agent, operator):
        task.api.may_answer.clear()
        source = Source(inline={"main.tf": local_exec("true")})
        await operator.start({}, source=Source(), approval=Approval(source=source))
        await agent.until(lambda: task.api.tokens)  # it has asked for its first Secret
        await operator.cancel()
        result = await operator.result()
        assert agent.descendants() == []
        assert (result.outcome, result.reason, result.kept_plan) == (Outcome.CANCELLED, "CancelledByUser", None)
    task.api.may_answer.set()
