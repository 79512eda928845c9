"""Providers that are slow, deaf, dying or lying, and cancels at bad moments: the end is true to what the cloud saw.

`judged` holds for every end here: no process and no operation is left, the lock is free, and the state
lists what exists, but for what the result says that it may miss. Where the other things that may go wrong
are tried: `cases`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terrahalt_protocol.messages import Action, CancelMode, Outcome, Report, Result, Rung, StateCondition
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    AgentProcess,
    Operator,
    an_agent,
    an_operator,
    command_lines,
)
from tests.agent_terraform.modules import local_exec, only_in_apply, reading, thing, trial
from tests.cloud import Cloud

pytestmark = pytest.mark.terraform
PROVIDER = "terraform-provider-trial"
CANCELLED = (Outcome.CANCELLED, "CancelledByUser")


@pytest.fixture
def env(providers: dict[str, str], cloud: Cloud) -> dict[str, str]:
    return providers | {"TRIAL_CLOUD": cloud.url}


@pytest.fixture
async def agent(tmp_path: Path, authority: Authority, env: dict[str, str]) -> AsyncIterator[AgentProcess]:
    async with an_agent(tmp_path, authority, **env) as started:
        yield started


async def applied(folder: Path, authority: Authority, env: dict[str, str], code: dict[str, str]) -> None:
    """A run before the one that the test is about."""
    async with an_agent(folder, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(code, run_id="01JBEFORE")
        assert (await operator.result()).outcome is Outcome.SUCCEEDED


def in_state(agent: AgentProcess) -> dict[str, str]:
    """Names of what the state has, with their status: tainted, or nothing."""
    path = agent.states / "network.tfstate"
    text = path.read_text() if path.exists() else ""
    state = json.loads(text or '{"resources": []}')  # it is empty until an apply has saved it
    return {
        resource["name"]: instance.get("status", "")
        for resource in state["resources"]
        if resource["type"] == "trial_thing"
        for instance in resource["instances"]
    }


def assert_lock_is_free(states: Path) -> None:
    with (states / "network.tfstate").open("a") as state:
        fcntl.lockf(state, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def judged(agent: AgentProcess, operator: Operator, cloud: Cloud) -> tuple[Report, Result]:
    final = await operator.final_report()
    left = command_lines(agent.descendants())  # at the moment of the report, not a while after it
    assert left == []
    await cloud.until_nobody_works()
    assert_lock_is_free(agent.states)
    assert final.result is not None
    result = final.result
    unlike = {f"trial_thing.{name}" for name in in_state(agent).keys() ^ cloud.objects}
    allowed = set() if result.state is StateCondition.COMPLETE else set(result.open_addresses)
    if not unlike <= allowed:  # OpenTofu saves now and then; a process that is killed loses what it had done since
        assert "and what it had done since it last saved it" in result.message, result
    return final, result


def of(result: Result) -> tuple[Outcome, str]:
    return result.outcome, result.reason


def rung(final: Report) -> Rung:
    assert final.cancel is not None
    return final.cancel.rung


def pids(agent: AgentProcess, mark: str) -> list[int]:
    return [pid for pid in agent.descendants() if any(mark in line for line in command_lines([pid]))]


async def until_apply(agent: AgentProcess) -> int:
    """The pid of terraform in its last step, as soon as it is there."""
    # What it starts is a copy of it for a moment, and younger.
    pid = min(await agent.until(lambda: pids(agent, " apply ")))
    assert isinstance(pid, int)
    return pid


# -- what an apply is to the cloud when nobody disturbs it


async def test_an_apply_and_a_destroy_are_what_the_cloud_has_seen(
    tmp_path: Path, authority: Authority, env: dict[str, str], cloud: Cloud
) -> None:
    code = trial(*(thing(f"r{n}", create=["sleep 300ms"]) for n in range(12)))
    await applied(tmp_path, authority, env, code)
    assert (cloud.begun["create"], cloud.finished["create"], len(cloud.objects)) == (12, 12, 12)
    assert 1 < cloud.most_at_work <= 10
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(code, action=Action.DESTROY)
        _, result = await judged(agent, operator, cloud)
    assert result.outcome is Outcome.SUCCEEDED
    assert (cloud.finished["delete"], cloud.objects) == (12, set())


# -- the moment of the cancel


@pytest.mark.parametrize("after_ms", [0, 5, 45, 100, 1000])
async def test_soon_after_the_start_no_whole_apply_slips_through(
    tmp_path: Path, authority: Authority, env: dict[str, str], cloud: Cloud, after_ms: int
) -> None:
    await applied(tmp_path, authority, env, trial(thing("old")))
    new = [thing(f"r{n}", f"trial_thing.{f'r{n - 1}' if n else 'old'}", create=["sleep 700ms"]) for n in range(4)]
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(trial(thing("old"), *new))
        await until_apply(agent)
        await asyncio.sleep(after_ms / 1000)
        await operator.cancel()
        _, result = await judged(agent, operator, cloud)
    assert of(result) == CANCELLED
    assert cloud.begun["create"] - 1 < len(new)
    assert "old" in cloud.objects


@pytest.mark.parametrize("mode", [CancelMode.GRACEFUL, CancelMode.FORCE])
@pytest.mark.parametrize("at_ms", [-50, -20, -5, 0, 5, 15, 30, 50])
async def test_around_the_end_the_label_is_never_wrong(
    agent: AgentProcess, operator: Operator, cloud: Cloud, at_ms: int, mode: CancelMode
) -> None:
    await operator.start(trial(thing("a", create=["work 400ms"])))
    if at_ms < 0:
        await cloud.until_begun("create")
        await asyncio.sleep(0.4 + at_ms / 1000)
    else:
        await cloud.until(lambda: cloud.finished["create"])
        await asyncio.sleep(at_ms / 1000)
    await operator.cancel(mode)
    _, result = await judged(agent, operator, cloud)
    if result.exit_code == 0:
        assert of(result) == (Outcome.SUCCEEDED, "Applied")
        assert (in_state(agent), cloud.objects) == ({"a": ""}, {"a"})
    else:
        assert of(result) == CANCELLED


@pytest.mark.parametrize("moment", ["starts", "configures its provider"])
@pytest.mark.parametrize("mode", [CancelMode.GRACEFUL, CancelMode.FORCE])
async def test_before_the_first_operation_no_object_is_made(
    agent: AgentProcess, operator: Operator, cloud: Cloud, mode: CancelMode, moment: str
) -> None:
    things = [thing(f"r{n}", create=["sleep 2s"]) for n in range(20)]
    await operator.start(trial(*things, configure=only_in_apply(["work 20s"])))
    await until_apply(agent)
    if moment == "starts":
        await asyncio.sleep(0.05)  # before this a SIGINT just ends it, from here on it would be lost
    else:
        await cloud.until_begun("configure", 2)
    assert cloud.begun["create"] == 0
    await operator.cancel(mode)
    _, result = await judged(agent, operator, cloud)
    assert of(result) == CANCELLED
    assert (cloud.objects, cloud.finished["create"]) == (set(), 0)
    assert cloud.begun["create"] == 0


async def test_a_destroy_that_is_cancelled_leaves_what_it_has_not_deleted_in_the_state(
    tmp_path: Path, authority: Authority, env: dict[str, str], cloud: Cloud
) -> None:
    code = trial(thing("a", delete=["sleep 60s"]), thing("b", "trial_thing.a"))
    await applied(tmp_path, authority, env, code)
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(code, action=Action.DESTROY)
        await cloud.until_begun("delete", 2)
        await operator.cancel()
        final, result = await judged(agent, operator, cloud)
    assert (of(result), result.state, rung(final)) == (CANCELLED, StateCondition.COMPLETE, Rung.INTERRUPT)
    assert (cloud.objects, cloud.aborted["delete"]) == ({"a"}, 1)


# -- providers that do not do what terraform asks


@pytest.mark.parametrize(
    ("create", "objects"), [("work 2s", {"a"}), ("linger 1s", set())], ids=["ignores a stop", "stops late"]
)
async def test_a_provider_is_waited_for_within_the_grace(
    agent: AgentProcess, operator: Operator, cloud: Cloud, create: str, objects: set[str]
) -> None:
    await operator.start(trial(thing("a", create=[create]), thing("b", "trial_thing.a")), cancel_grace_s=30)
    await cloud.until_begun("create")
    await operator.cancel()
    final, result = await judged(agent, operator, cloud)
    assert (of(result), rung(final)) == (CANCELLED, Rung.INTERRUPT)
    assert (result.state, result.forced, result.open_addresses) == (StateCondition.COMPLETE, False, ())
    assert (cloud.objects, cloud.begun["create"]) == (objects, 1)


@pytest.mark.parametrize("create", [["hang"], ["work 60s"], ["linger 60s"], ["finish", "hang"]], ids="; ".join)
async def test_a_provider_that_takes_longer_is_killed_and_what_it_was_doing_is_told(
    agent: AgentProcess, operator: Operator, cloud: Cloud, create: list[str]
) -> None:
    code = trial(thing("saved"), thing("a", "trial_thing.saved", create=create), thing("b", "trial_thing.a"))
    await operator.start(code, cancel_grace_s=1)
    await cloud.until_begun("create", 2)
    await cloud.until(lambda: cloud.finished["create"] == 1 + ("finish" in create))
    asked_s = time.monotonic()
    await operator.cancel()
    final, result = await judged(agent, operator, cloud)
    assert time.monotonic() - asked_s < 10.0
    assert (of(result), rung(final)) == (CANCELLED, Rung.KILL_PROVIDERS)
    assert (result.state, result.forced) == (StateCondition.INCOMPLETE, True)
    assert result.open_addresses == ("trial_thing.a",)
    assert (in_state(agent), cloud.begun["create"]) == ({"saved": ""}, 2)


@pytest.mark.parametrize("call", ["validate", "configure", "read"])
async def test_a_provider_that_hangs_before_anything_is_changed_ends_cleanly(
    agent: AgentProcess, operator: Operator, cloud: Cloud, call: str
) -> None:
    if call == "read":
        code = trial(reading("slow", read=["hang"]), thing("a", "data.trial_reading.slow"))
    else:
        code = trial(thing("a"), **{call: ["hang"]})
    await operator.start(code, cancel_grace_s=1)
    await cloud.until_begun(call)
    asked_s = time.monotonic()
    await operator.cancel()
    final, result = await judged(agent, operator, cloud)
    assert time.monotonic() - asked_s < 10.0
    # Before its first operation terraform is killed at once; a read is one.
    assert (of(result), rung(final)) == (CANCELLED, Rung.KILL_PROVIDERS if call == "read" else Rung.KILL)
    assert (result.state, result.forced, cloud.begun["create"]) == (StateCondition.COMPLETE, False, 0)


async def test_a_provider_that_hangs_at_the_start_of_an_apply_is_killed_before_it_has_made_anything(
    agent: AgentProcess, operator: Operator, cloud: Cloud
) -> None:
    await operator.start(trial(thing("a"), configure=only_in_apply(["hang"])))
    await cloud.until_begun("configure", 2)
    await operator.cancel(CancelMode.FORCE)
    final, result = await judged(agent, operator, cloud)
    assert (of(result), rung(final), result.exit_code) == (CANCELLED, Rung.KILL, -9)
    assert (result.state, cloud.begun["create"]) == (StateCondition.COMPLETE, 0)


@pytest.mark.parametrize("word", ["fork", "cling"])
@pytest.mark.parametrize("ending", ["succeeded", "cancelled"])
async def test_nothing_that_a_provider_started_is_alive_after_the_end(
    agent: AgentProcess, operator: Operator, cloud: Cloud, word: str, ending: str
) -> None:
    create = [word, "sleep 60s" if ending == "cancelled" else "work 500ms"]
    await operator.start(trial(thing("a", create=create)), cancel_grace_s=1)
    (deaf,) = await agent.until(lambda: pids(agent, f"{PROVIDER} deaf"))
    assert os.getsid(deaf) == deaf
    if ending == "cancelled":
        await cloud.until_begun("create")
        await operator.cancel()
    _, result = await judged(agent, operator, cloud)
    assert result.outcome is (Outcome.CANCELLED if ending == "cancelled" else Outcome.SUCCEEDED)
    assert command_lines([deaf]) == []


# -- providers and terraforms that die


@pytest.mark.parametrize("work", ["idle", "at work"])
async def test_a_provider_outlives_a_terraform_that_is_killed_and_does_not_outlive_the_run(
    agent: AgentProcess, operator: Operator, cloud: Cloud, work: str
) -> None:
    if work == "idle":
        code = trial(thing("a"), local_exec("echo begun; sleep 300", depends_on="trial_thing.a"))
        code["main.tf"] += thing("b", "terraform_data.a")
    else:
        code = trial(thing("a"), thing("b", "trial_thing.a", create=["work 60s"]))
    await operator.start(code)
    terraform = await until_apply(agent)
    if work == "idle":
        await agent.until_logged(r"\(local-exec\): begun")
    else:
        await cloud.until_begun("create", 2)
    (provider,) = pids(agent, PROVIDER)
    await agent.freeze()  # so that there is a while between the two ends
    os.kill(terraform, signal.SIGKILL)
    # Until its threads are gone too, what it started has no parent that is alive.
    await agent.until(lambda: {terraform, provider} & set(agent.descendants()) == {provider})
    assert len(cloud.at_work) == (work == "at work")
    agent.process.send_signal(signal.SIGCONT)
    _, result = await judged(agent, operator, cloud)
    assert (of(result), result.exit_code) == ((Outcome.FAILED, "TerraformKilled"), -9)
    assert result.state is StateCondition.INCOMPLETE
    assert "b" not in cloud.objects


@pytest.mark.parametrize("cause", ["SIGKILL", "crash", "finish; crash"])
async def test_what_a_provider_that_died_may_have_made_is_told(
    agent: AgentProcess, operator: Operator, cloud: Cloud, cause: str
) -> None:
    create = ["work 60s"] if cause == "SIGKILL" else cause.split("; ")
    code = trial(thing("saved"), thing("a", "trial_thing.saved", create=create), thing("b", "trial_thing.a"))
    await operator.start(code)
    if cause == "SIGKILL":
        await cloud.until_begun("create", 2)
        for pid in pids(agent, PROVIDER):
            os.kill(pid, signal.SIGKILL)
    _, result = await judged(agent, operator, cloud)
    assert of(result) == (Outcome.FAILED, "ApplyFailed")
    assert (result.state, result.open_addresses) == (StateCondition.INCOMPLETE, ("trial_thing.a",))
    assert result.forced is False
    assert (in_state(agent), cloud.begun["create"]) == ({"saved": ""}, 2)


async def test_a_provider_that_dies_in_the_plan_has_changed_nothing(
    agent: AgentProcess, operator: Operator, cloud: Cloud
) -> None:
    await operator.start(trial(reading("r", read=["crash"]), thing("a", "data.trial_reading.r")))
    _, result = await judged(agent, operator, cloud)
    assert (of(result), result.state) == ((Outcome.FAILED, "PlanFailed"), StateCondition.COMPLETE)
    assert cloud.begun["create"] == 0


async def test_what_a_provider_says_it_has_half_made_is_tainted_in_the_state(
    agent: AgentProcess, operator: Operator, cloud: Cloud
) -> None:
    await operator.start(trial(thing("a", create=["finish", "keep", "fail"])))
    _, result = await judged(agent, operator, cloud)
    assert (of(result), result.state) == ((Outcome.FAILED, "ApplyFailed"), StateCondition.COMPLETE)
    assert (in_state(agent), cloud.objects) == ({"a": "tainted"}, {"a"})


async def test_what_a_stopped_provider_says_it_has_half_made_is_tainted_in_the_state(
    agent: AgentProcess, operator: Operator, cloud: Cloud
) -> None:
    await operator.start(trial(thing("a", create=["finish", "keep", "sleep 60s"])))
    await cloud.until(lambda: cloud.finished["create"])
    await operator.cancel()
    final, result = await judged(agent, operator, cloud)
    assert (of(result), rung(final), result.state) == (CANCELLED, Rung.INTERRUPT, StateCondition.COMPLETE)
    assert (in_state(agent), cloud.objects) == ({"a": "tainted"}, {"a"})


async def test_a_provider_that_had_failed_before_the_cancel_is_what_the_run_failed_of(
    agent: AgentProcess, operator: Operator, cloud: Cloud
) -> None:
    slow = [thing(f"slow{n}", create=["sleep 60s"]) for n in range(8)]  # terraform tells their errors in any order
    await operator.start(trial(thing("broken", create=["fail"]), *slow))
    await agent.until_logged(r"trial_thing\.broken: Creation errored")
    await cloud.until_begun("create", 9)
    await operator.cancel()
    _, result = await judged(agent, operator, cloud)
    assert (of(result), result.state) == ((Outcome.FAILED, "ApplyFailed"), StateCondition.COMPLETE)
    assert "it was told to fail" in result.message
