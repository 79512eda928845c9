"""Each timeout with a real terraform: the ladder ends it, nothing is alive, and its own reason is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from terrahalt_protocol.messages import Action, CancelMode, CancelReason, EnvFrom, Outcome, Result, Rung, StateCondition
from terrahalt_protocol.signing import unseal
from tests import engine
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    KEY,
    RUN_ID,
    AgentProcess,
    Operator,
    an_agent,
    an_operator,
    api_access,
    freeze_provider,
    program,
    somebody_who_never_answers,
    until,
)
from tests.agent_terraform.modules import hanging_module, hanging_read, local_exec, sleeping, slow_resource

pytestmark = pytest.mark.terraform


def of(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.reason


def _write_module(folder: Path, state: Path) -> None:
    folder.mkdir()
    backend = f'terraform {{\n  backend "local" {{ path = "{state}" }}\n}}\n'
    (folder / "main.tf").write_text(backend + local_exec("echo at work; exec sleep 300", "theirs"))


@asynccontextmanager
async def another_terraform(folder: Path, states: Path) -> AsyncIterator[dict[str, Any]]:
    """It works on the same state for as long as this lasts; what it has written about its lock."""
    _write_module(folder, states / "network.tfstate")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "CHECKPOINT_DISABLE": "1"}
    quiet = {"cwd": folder, "env": env, "stdin": asyncio.subprocess.DEVNULL}
    init = await asyncio.create_subprocess_exec(program(), "init", **quiet)  # type: ignore[arg-type]
    assert await init.wait() == 0
    with (folder / "log").open("wb") as log:
        theirs = await asyncio.create_subprocess_exec(
            program(), "apply", "-auto-approve", "-json", stdout=log, stderr=log, **quiet  # type: ignore[arg-type]
        )  # fmt: skip
    try:
        await until(lambda: b"(local-exec): at work" in (folder / "log").read_bytes())
        yield json.loads((states / ".network.tfstate.lock.info").read_text())
        assert theirs.returncode is None
    finally:
        theirs.send_signal(signal.SIGINT)
        await theirs.wait()


async def test_an_apply_without_output_is_ended_as_by_a_cancel_though_terraform_says_that_it_is_still_at_work(
    agent: AgentProcess, operator: Operator
) -> None:
    await operator.start(sleeping(), no_output_timeout_s=12)
    await agent.until_logged(r"\(local-exec\): begun")
    begun_s = time.monotonic()
    final = await operator.final_report()
    assert agent.descendants() == []
    assert time.monotonic() - begun_s < 30.0
    assert "Still creating... [" in agent.log  # terraform says so every 10 s
    assert final.result is not None
    assert of(final.result) == (Outcome.FAILED, "NoOutputTimedOut")
    assert "timed out (12 s without output)" in final.result.message
    assert (final.result.state, final.result.forced) == (StateCondition.COMPLETE, False)
    assert final.cancel is not None
    assert (final.cancel.reason, final.cancel.rung) == (CancelReason.TIMEOUT, Rung.INTERRUPT)


async def test_an_apply_that_says_something_now_and_then_is_left_alone(agent: AgentProcess, operator: Operator) -> None:
    talk = "for n in 1 2 3 4 5 6 7 8 9 10; do echo $n; sleep 1; done"
    await operator.start({"main.tf": local_exec(talk)}, no_output_timeout_s=8)
    assert of(await operator.result()) == (Outcome.SUCCEEDED, "Applied")


async def test_an_init_that_hangs_is_ended_in_bounded_time_with_all_that_it_started(
    agent: AgentProcess, operator: Operator
) -> None:
    async with somebody_who_never_answers() as (port, asked):
        await operator.start(hanging_module(port), init_timeout_s=5, cancel_grace_s=2)
        await asyncio.wait_for(asked.wait(), 30)
        asked_s = time.monotonic()
        result = await operator.result()
        assert agent.descendants() == []
    assert time.monotonic() - asked_s < 5 + 2 + 5
    assert of(result) == (Outcome.FAILED, "InitTimedOut")
    assert f"timed out (5 s for init) in {engine.NAME} init" in result.message
    assert not (agent.work / RUN_ID / "logs/plan.jsonl").exists()


async def test_a_lock_that_another_terraform_keeps_is_named_with_its_holder_and_left_alone(
    agent: AgentProcess, operator: Operator, tmp_path: Path
) -> None:
    async with another_terraform(tmp_path / "theirs", agent.states) as lock:
        await operator.start({"main.tf": local_exec("true")}, lock_timeout_s=2)
        final = await operator.final_report()
        assert agent.descendants() == []
    result = final.result
    assert result is not None
    assert of(result) == (Outcome.FAILED, "LockTimedOut")
    assert f"plan waited 2 s for the state's lock, which is held by {lock['Who']} since 20" in result.message
    assert f"(ID {lock['ID']})" in result.message
    assert final.cancel is None
    state = json.loads((agent.states / "network.tfstate").read_text())
    assert [resource["name"] for resource in state["resources"]] == ["theirs"]


async def test_a_wait_for_another_terraforms_lock_that_is_cancelled_is_cancelled(
    agent: AgentProcess, operator: Operator, tmp_path: Path
) -> None:
    async with another_terraform(tmp_path / "theirs", agent.states):
        await operator.start({"main.tf": local_exec("true")}, lock_timeout_s=60)
        await agent.until_logged("Acquiring state lock")
        await operator.cancel()
        result = await operator.result(10)
        assert agent.descendants() == []
    assert of(result) == (Outcome.CANCELLED, "CancelledByUser")


async def test_a_timeout_and_cancels_after_it_are_one_ladder_and_the_first_names_the_end(
    agent: AgentProcess, operator: Operator
) -> None:
    async with somebody_who_never_answers() as (port, asked):
        await operator.start(hanging_read(port), no_output_timeout_s=8, action=Action.PLAN)
        await asyncio.wait_for(asked.wait(), 30)
        await agent.until_logged("Interrupt received")  # which a read like this does not heed
        for _ in range(3):
            told = len(operator.reports)
            await operator.cancel()
            await operator.until(lambda told=told: len(operator.reports) > told)  # type: ignore[misc]
        agent.process.send_signal(signal.SIGTERM)
        told = len(operator.reports)
        await operator.until(lambda: len(operator.reports) > told)
        assert agent.descendants() != []
    final = await operator.final_report()
    assert agent.descendants() == []
    assert final.result is not None
    assert of(final.result) == (Outcome.FAILED, "NoOutputTimedOut")
    assert final.cancel is not None
    assert (final.cancel.reason, final.cancel.rung) == (CancelReason.TIMEOUT, Rung.INTERRUPT)
    assert agent.log.count("Interrupt received") == 1
    assert "Two interrupts" not in agent.log


async def test_a_pod_that_leaves_no_time_for_its_grace_is_hurried_and_its_report_is_out_before_it_is_killed(
    tmp_path: Path, authority: Authority, providers: dict[str, str]
) -> None:
    async with an_agent(tmp_path, authority, **providers) as agent, an_operator(agent) as operator:
        await operator.start(slow_resource())
        await agent.until_logged("time_sleep.slow: Creating")
        freeze_provider(agent, "time")  # so that nothing ends by itself for the whole grace of 300 s
        agent.process.send_signal(signal.SIGTERM)
        await operator.until(lambda: operator.reports[-1].cancel)
        asked_s = time.monotonic()
        await operator.cancel(CancelMode.FORCE, reason=CancelReason.POD_TERMINATION)
        result = await operator.result()
        assert agent.descendants() == []
        assert time.monotonic() - asked_s < 15.0
        assert of(result) == (Outcome.CANCELLED, "CancelledByPodTermination")
        assert "terraform_data" in (agent.states / "network.tfstate").read_text()
        report = unseal(agent.termination_message, KEY, RUN_ID)
        assert report is not None
        assert report.result == result


async def test_what_passes_before_the_run_and_while_it_is_prepared_is_no_silence_and_no_init(
    tmp_path: Path, authority: Authority
) -> None:
    async with a_fake_api() as api:
        api.put_secret("aws", KEY="value")
        api.may_answer.clear()
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            fields: dict[str, Any] = {"env_from": (EnvFrom(secret="aws"),), "action": Action.PLAN}
            await operator.start({"main.tf": ""}, no_output_timeout_s=12, init_timeout_s=12, **fields)
            await until(lambda: api.tokens)
            await asyncio.sleep(12.5)  # longer than either: time itself is what is tried here
            api.may_answer.set()
            assert of(await operator.result()) == (Outcome.SUCCEEDED, "Planned")
