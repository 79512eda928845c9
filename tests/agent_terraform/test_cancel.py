"""A cancel at every moment, with a real terraform: it ends, nothing is alive, and the label is true."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from pathlib import Path

import pytest

from terrahalt_protocol.messages import (
    Action,
    CancelMode,
    CancelReason,
    Outcome,
    Result,
    Rung,
    StateCondition,
    Step,
)
from terrahalt_protocol.signing import unseal
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    KEY,
    RUN_ID,
    AgentProcess,
    Operator,
    a_held_lock,
    an_agent,
    an_operator,
    api_access,
    command_lines,
    freeze_provider,
    program,
    somebody_who_never_answers,
    state_of,
)
from tests.agent_terraform.modules import chain, hanging_module, hanging_read, local_exec, sleeping, slow_resource

pytestmark = pytest.mark.terraform
CANCELLED = (Outcome.CANCELLED, "CancelledByUser")


def of(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.reason


async def test_in_an_apply_terraform_stops_saves_and_taints_and_nothing_is_alive(
    agent: AgentProcess, operator: Operator
) -> None:
    await operator.start(sleeping())
    await agent.until_logged(r"\(local-exec\): begun")
    asked_s = time.monotonic()
    await operator.cancel()
    final = await operator.final_report()
    assert agent.descendants() == []
    assert time.monotonic() - asked_s < 10.0  # its grace is 300 s
    assert final.result is not None
    assert of(final.result) == CANCELLED
    assert (final.result.state, final.result.forced) == (StateCondition.COMPLETE, False)
    state = json.loads((agent.states / "network.tfstate").read_text())
    assert state["resources"][0]["instances"][0]["status"] == "tainted"
    assert final.cancel is not None
    ages = final.cancel.ages
    assert final.cancel.rung is Rung.INTERRUPT
    assert None not in (ages.received_s, ages.signalled_s, ages.exited_s, ages.swept_s)
    assert ages.received_s >= ages.signalled_s >= ages.exited_s >= ages.swept_s >= 0  # type: ignore[operator]


async def test_in_a_plan_that_waits_for_the_lock_it_stops_waiting(agent: AgentProcess, operator: Operator) -> None:
    with a_held_lock(agent.states):
        await operator.start(sleeping())
        await agent.until_logged("Acquiring state lock")
        await operator.cancel()
        result = await operator.result()
    assert agent.descendants() == []
    assert of(result) == CANCELLED
    assert not (agent.work / RUN_ID / "logs/apply.jsonl").exists()


async def test_in_a_read_that_nothing_interrupts_the_second_sigint_ends_it(
    agent: AgentProcess, operator: Operator
) -> None:
    async with somebody_who_never_answers() as (port, asked):
        await operator.start(hanging_read(port), cancel_grace_s=1, action=Action.PLAN)
        await asyncio.wait_for(asked.wait(), 30)
        await operator.cancel(reason=CancelReason.DELETION)
        final = await operator.final_report()
        assert agent.descendants() == []
    assert final.result is not None
    assert final.cancel is not None
    assert of(final.result) == (Outcome.CANCELLED, "CancelledByDeletion")
    assert final.cancel.rung is Rung.SECOND_INTERRUPT
    assert final.result.state is StateCondition.COMPLETE


async def test_in_init_a_download_that_hangs_is_ended(agent: AgentProcess, operator: Operator) -> None:
    async with somebody_who_never_answers() as (port, asked):
        await operator.start(hanging_module(port), cancel_grace_s=3)
        await asyncio.wait_for(asked.wait(), 30)
        await operator.cancel()
        result = await operator.result()
        assert agent.descendants() == []  # git has children of its own
    assert of(result) == CANCELLED
    assert not (agent.work / RUN_ID / "logs/plan.jsonl").exists()


@pytest.mark.parametrize("step", [Step.INIT, Step.PLAN, Step.APPLY])
@pytest.mark.parametrize("mode", list(CancelMode))
async def test_at_the_very_start_of_each_step(
    agent: AgentProcess, operator: Operator, step: Step, mode: CancelMode, tmp_path: Path
) -> None:
    (tmp_path / "marks").mkdir()
    await operator.start(chain(str(tmp_path / "marks"), 3, 0.5), cancel_grace_s=60)
    await operator.until_step(step)
    await operator.cancel(mode)
    result = await operator.result()
    assert agent.descendants() == []
    assert of(result) == CANCELLED
    assert len(list((tmp_path / "marks").iterdir())) < 3


async def test_at_random_moments_the_label_is_what_really_happened(tmp_path: Path, authority: Authority) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for n in range(8):
        folder = tmp_path / str(n)
        (folder / "marks").mkdir(parents=True)
        async with an_agent(folder, authority) as agent, an_operator(agent) as operator:
            await operator.start(chain(str(folder / "marks"), 3, 0.1))
            await asyncio.sleep(chance.uniform(0, 0.9))
            await operator.cancel(chance.choice([CancelMode.GRACEFUL, CancelMode.GRACEFUL, CancelMode.FORCE]))
            result = await operator.result()
            assert agent.descendants() == []
            marks = len(list((folder / "marks").iterdir()))
            # The last command may be done and terraform not: then it says so by its exit code.
            is_whole = marks == 3 and result.exit_code == 0
            assert (result.outcome is Outcome.SUCCEEDED) == is_whole, (seed, n, result)
            assert result.outcome is not Outcome.FAILED, (seed, n, result)
            done = operator.reports[-1].resources_done
            assert done <= marks <= done + 1, (seed, n, result)


@pytest.mark.parametrize("after_ms", [0, 5, 20, 45, 70, 100])
async def test_in_the_gate_no_whole_apply_slips_through(
    tmp_path: Path, authority: Authority, after_ms: int, providers: dict[str, str]
) -> None:
    (tmp_path / "marks").mkdir()
    code = chain(str(tmp_path / "marks"), 3, 0.4) | {"slow.tf": slow_resource(5)["main.tf"]}
    async with an_agent(tmp_path, authority, **providers) as agent, an_operator(agent) as operator:
        await operator.start(code)
        await agent.until(lambda: any(" apply " in line for line in command_lines(agent.descendants())))
        await asyncio.sleep(after_ms / 1000)
        await operator.cancel()
        final = await operator.final_report()
        assert agent.descendants() == []
        assert final.result is not None
        assert final.cancel is not None
        assert of(final.result) == CANCELLED
        marks = len(list((tmp_path / "marks").iterdir()))
        assert marks < 3
        if final.cancel.rung is Rung.KILL:
            assert (marks, final.result.forced, final.result.state) == (0, False, StateCondition.COMPLETE)


def held_back(folder: Path, step: Step) -> tuple[dict[str, str], Path, Path]:
    """An engine whose process is there in that step, and is terraform only once `go` is: environment, waiting, go."""
    waiting, go, slow = folder / "waiting", folder / "go", folder / "slow"
    wait = f'[ "$1" = {step.value.lower()} ] && touch "{waiting}" && while [ ! -e "{go}" ]; do sleep 0.02; done'
    slow.write_text(f'#!/bin/sh\n{wait}\nexec {program()} "$@"\n')
    slow.chmod(0o755)
    return {"TERRAHALT_ENGINE_PATH": str(slow)}, waiting, go


async def test_an_init_that_does_not_handle_signals_yet_ends_by_the_first_one(
    tmp_path: Path, authority: Authority
) -> None:
    env, waiting, _ = held_back(tmp_path, Step.INIT)
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(sleeping())
        await agent.until(waiting.exists)
        await operator.cancel()
        final = await operator.final_report()
        assert agent.descendants() == []
        assert (agent.work / RUN_ID / "logs/init.jsonl").read_text() == ""
    assert final.result is not None
    assert final.cancel is not None
    assert (of(final.result), final.result.exit_code) == (CANCELLED, -signal.SIGINT)
    assert (final.cancel.rung, final.result.state) == (Rung.INTERRUPT, StateCondition.COMPLETE)


async def test_a_gate_that_never_opens_ends_in_a_clean_kill(tmp_path: Path, authority: Authority) -> None:
    env, waiting, go = held_back(tmp_path, Step.APPLY)
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec(f"touch {tmp_path}/touched")})
        await agent.until(waiting.exists)
        with a_held_lock(agent.states):
            go.touch()
            await agent.until_logged("Acquiring state lock")
            await operator.cancel(CancelMode.FORCE)
            final = await operator.final_report()
            assert agent.descendants() == []
        assert "Interrupt received" not in agent.log
    assert final.result is not None
    assert (of(final.result), final.result.exit_code, final.result.state) == (CANCELLED, -9, StateCondition.COMPLETE)
    assert not (tmp_path / "touched").exists()


async def test_at_the_gate_it_stands_still_while_its_lock_is_looked_at(tmp_path: Path, authority: Authority) -> None:
    waiting = tmp_path / "waiting"
    planned = '{"type": "change_summary", "@message": "Plan: 1 to add", "changes": {"add": 1}}'
    steps = f"plan) echo '{planned}' ;; apply) exec sleep 300 ;;"
    waiting.write_text(f'#!/bin/sh\ncase "$1" in {steps} esac\n')
    waiting.chmod(0o755)
    async with a_fake_api() as api:
        env = {"TERRAHALT_BACKEND": "Kubernetes"} | api_access(tmp_path, authority, api.url)
        async with (
            an_agent(tmp_path, authority, TERRAHALT_ENGINE_PATH=str(waiting), **env) as agent,
            an_operator(agent) as operator,
        ):
            await operator.start({"main.tf": ""})
            await agent.until(lambda: command_lines(agent.descendants()) == ["sleep 300 "])
            (pid,) = agent.descendants()
            api.may_answer.clear()
            asked = len(api.tokens)
            await operator.cancel()
            await agent.until(lambda: len(api.tokens) > asked)
            state = state_of(pid)
            api.may_answer.set()
            result = await operator.result()
            assert (state, of(result), result.exit_code, result.forced) == ("T", CANCELLED, -9, False)
            assert agent.descendants() == []


async def test_twice_is_one_ladder(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("trap 'sleep 1' EXIT TERM; echo begun; sleep 300")})
    await agent.until_logged(r"\(local-exec\): begun")
    for _ in range(3):
        await operator.cancel()
    agent.process.send_signal(signal.SIGTERM)
    result = await operator.result()
    assert of(result) == CANCELLED
    assert agent.log.count("Interrupt received") == 1
    assert "Two interrupts" not in agent.log
    await operator.ack()
    assert await agent.ended() == 0


async def test_before_its_start_nothing_ever_runs(agent: AgentProcess, operator: Operator) -> None:
    await operator.cancel()
    result = await operator.result()
    assert (result.outcome, result.message) == (Outcome.CANCELLED, "cancelled before it was started: nothing ran")
    report = unseal(agent.termination_message, KEY, RUN_ID)
    assert report is not None
    assert report.result == result
    await operator.start(sleeping())
    await operator.until(lambda: len(operator.reports) == 2)
    assert operator.reports[1].result == result
    assert list(agent.work.iterdir()) == []
    assert agent.descendants() == []


async def test_after_its_end_the_true_result_stays(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": ""})
    result = await operator.result()
    await operator.cancel()
    await operator.until(lambda: operator.reports[-1].sequence > operator.reports[-2].sequence)
    assert operator.reports[-1].result == result


async def test_a_timeout_is_a_failure_that_leaves_nothing(agent: AgentProcess, operator: Operator) -> None:
    await operator.start(sleeping(), timeout_s=10)
    final = await operator.final_report()
    assert agent.descendants() == []
    assert final.result is not None
    assert of(final.result) == (Outcome.FAILED, "TimedOut")
    assert final.cancel is not None
    assert (final.cancel.reason, final.cancel.rung) == (CancelReason.TIMEOUT, Rung.INTERRUPT)


async def test_the_pods_end_is_the_same_ladder_also_without_an_operator(agent: AgentProcess) -> None:
    async with an_operator(agent) as operator:
        await operator.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.ended(20) == 0
    report = unseal(agent.termination_message, KEY, RUN_ID)
    assert report is not None
    assert report.result is not None
    assert of(report.result) == (Outcome.CANCELLED, "CancelledByPodTermination")
    assert report.result.state is StateCondition.COMPLETE


async def test_a_provider_that_hangs_is_killed_and_the_state_is_saved(
    tmp_path: Path, authority: Authority, providers: dict[str, str]
) -> None:
    async with an_agent(tmp_path, authority, **providers) as agent, an_operator(agent) as operator:
        await operator.start(slow_resource(), cancel_grace_s=1)
        await agent.until_logged("time_sleep.slow: Creating")
        freeze_provider(agent, "time")
        await operator.cancel()
        final = await operator.final_report()
        assert agent.descendants() == []
        assert final.result is not None
        assert final.cancel is not None
        assert (of(final.result), final.cancel.rung) == (CANCELLED, Rung.KILL_PROVIDERS)
        assert (final.result.forced, final.result.state) == (True, StateCondition.INCOMPLETE)
        assert final.result.open_addresses == ("time_sleep.slow",)
        assert "terraform_data" in (agent.states / "network.tfstate").read_text()
        assert not (agent.states / ".network.tfstate.lock.info").exists()  # terraform has released its lock itself


async def test_force_does_not_wait_for_a_provider_that_hangs(
    tmp_path: Path, authority: Authority, providers: dict[str, str]
) -> None:
    async with an_agent(tmp_path, authority, **providers) as agent, an_operator(agent) as operator:
        await operator.start(slow_resource(), cancel_grace_s=300)
        await agent.until_logged("time_sleep.slow: Creating")
        freeze_provider(agent, "time")
        await operator.cancel()
        await operator.until(lambda: operator.reports[-1].cancel)
        asked_s = time.monotonic()
        await operator.cancel(CancelMode.FORCE)
        final = await operator.final_report()
        assert agent.descendants() == []
        assert time.monotonic() - asked_s < 10.0  # after as much the next rung is climbed
        assert final.result is not None
        assert final.cancel is not None
        assert (of(final.result), final.result.forced) == (CANCELLED, True)
        assert final.cancel.rung is Rung.KILL_PROVIDERS


async def test_a_terraform_that_hangs_itself_is_killed(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("echo begun; kill -STOP $PPID; sleep 300")}, cancel_grace_s=1)
    await agent.until_logged(r"terraform_data.a: Creating")
    await agent.until(lambda: any("sleep 300" in line for line in command_lines(agent.descendants())))
    await operator.cancel()
    final = await operator.final_report()
    assert agent.descendants() == []
    assert final.result is not None
    assert final.cancel is not None
    assert (of(final.result), final.cancel.rung, final.result.exit_code) == (CANCELLED, Rung.KILL, -9)
    assert (final.result.forced, final.result.open_addresses) == (True, ("terraform_data.a",))


async def test_an_error_before_the_cancel_is_what_the_run_failed_of(agent: AgentProcess, operator: Operator) -> None:
    code = local_exec("exit 4", "broken") + local_exec("echo begun; sleep 300", "slow")
    await operator.start({"main.tf": code})
    await agent.until_logged(r"terraform_data\.broken: Creation errored")
    await agent.until_logged(r"\(local-exec\): begun")
    await operator.cancel()
    result = await operator.result()
    assert of(result) == (Outcome.FAILED, "ApplyFailed")
    assert agent.descendants() == []


async def test_a_cancel_after_a_lost_connection_reaches_the_same_run(agent: AgentProcess) -> None:
    async with an_operator(agent) as first:
        await first.start(sleeping())
        await agent.until_logged(r"\(local-exec\): begun")
    async with an_operator(agent, epoch=2) as second:
        assert second.hello.runs == (RUN_ID,)
        await second.until_step(Step.APPLY)
        await second.cancel()
        assert of(await second.result()) == CANCELLED
    assert agent.descendants() == []
    await agent.until_logged(r"Cancelled \(CancelledByUser\)")
