"""Runs that come to their own end: what is done, what is told, and that nothing is left alive."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from terrahalt_protocol.messages import (
    Action,
    ConfigFrom,
    EnvFrom,
    LockCondition,
    Outcome,
    OutputsTo,
    PlanSummary,
    PublishedOutputs,
    Source,
    StateCondition,
    Step,
    Values,
)
from terrahalt_protocol.signing import unseal
from tests import engine
from tests.agent.fake_api import a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import (
    KEY,
    RUN_ID,
    AgentProcess,
    Operator,
    a_start,
    an_agent,
    an_operator,
    api_access,
    command_lines,
    descendants,
    program,
    running,
    until,
)
from tests.agent_terraform.modules import local_exec

pytestmark = pytest.mark.terraform


def resources(agent: AgentProcess) -> list[str]:
    state = json.loads((agent.states / "network.tfstate").read_text())
    return [f"{resource['type']}.{resource['name']}" for resource in state["resources"]]


async def test_an_apply_is_done_told_step_by_step_and_leaves_nothing(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("echo a done"), "out.tf": 'output "o" { value = "shown" }'})
    final = await operator.final_report()
    assert agent.descendants() == []
    assert final.result is not None
    assert (final.result.outcome, final.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert (final.result.exit_code, final.result.state) == (0, StateCondition.COMPLETE)
    assert final.result.lock.condition is LockCondition.RELEASED
    assert (final.plan, final.resources_done) == (PlanSummary(add=1), 1)
    steps = list(dict.fromkeys(report.step for report in operator.reports))
    assert steps == [Step.PREPARE, Step.INIT, Step.PLAN, Step.APPLY, Step.SWEEP]
    assert [report.sequence for report in operator.reports] == sorted({r.sequence for r in operator.reports})
    assert resources(agent) == ["terraform_data.a"]
    await agent.until_logged('o = "shown"')


@contextmanager
def as_the_image_starts_it() -> Iterator[None]:
    """With SIGTERM blocked, which a new process inherits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


async def test_a_sigterm_that_comes_before_the_agent_has_its_handler_ends_it_all_the_same(
    tmp_path: Path, authority: Authority
) -> None:
    def starting() -> list[int]:
        return [pid for pid in descendants(os.getpid()) if "recording_agent" in "".join(command_lines([pid]))]

    async def terminate_at_sight() -> None:
        os.kill(min(await until(starting)), signal.SIGTERM)

    with as_the_image_starts_it():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(terminate_at_sight())
            async with an_agent(tmp_path, authority) as agent:
                await agent.ended(within_s=20)


async def test_the_final_report_is_in_the_termination_message_signed(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": ""})
    final = await operator.final_report()
    assert unseal(agent.termination_message, KEY, RUN_ID) == final
    assert unseal(agent.termination_message.replace("Applied", "Planned"), KEY, RUN_ID) is None


async def test_a_plan_changes_nothing(agent: AgentProcess, operator: Operator, tmp_path: Path) -> None:
    await operator.start({"main.tf": local_exec(f"touch {tmp_path}/touched")}, action=Action.PLAN)
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Planned")
    assert operator.reports[-1].plan == PlanSummary(add=1)
    assert not (tmp_path / "touched").exists()
    assert not (agent.states / "network.tfstate").exists()
    assert agent.descendants() == []


async def test_a_destroy_removes_what_an_apply_has_made(tmp_path: Path, authority: Authority) -> None:
    for action, left in ((Action.APPLY, ["terraform_data.a"]), (Action.DESTROY, [])):
        async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
            await operator.start({"main.tf": local_exec("true")}, action=action, run_id=f"{RUN_ID}{action}")
            assert (await operator.result()).outcome is Outcome.SUCCEEDED
            assert resources(agent) == left


async def test_a_failure_says_which_resource_failed_and_why(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("echo the disk is full; exit 3", "broken")})
    result = await operator.result()
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "ApplyFailed", 1)
    assert f"{engine.NAME} apply: local-exec provisioner error (terraform_data.broken, main.tf line" in result.message
    assert "exit status 3" in result.message
    assert resources(agent) == ["terraform_data.broken"]


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ('resource "x" {', "InitFailed", "Unclosed configuration block"),
        ('module "m" { source = "./missing" }', "InitFailed", "Unreadable module directory"),
        ("output \"o\" { value = var.missing }", "PlanFailed", "Reference to undeclared input variable"),
    ],
)  # fmt: skip
async def test_code_that_is_wrong_fails_in_its_step(
    agent: AgentProcess, operator: Operator, text: str, reason: str, words: str
) -> None:
    await operator.start({"main.tf": text})
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert words in result.message
    assert agent.descendants() == []


async def test_a_source_that_would_leave_its_folder_starts_nothing(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": "", "../escaped.tf": ""})
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "SourceInvalid")
    assert "../escaped.tf" in result.message
    assert list(agent.work.iterdir()) == []


async def test_variables_of_any_shape_arrive(agent: AgentProcess, operator: Operator) -> None:
    code = 'variable "zones" { type = list(string) }\noutput "joined" { value = join("+", var.zones) }'
    await operator.start({"main.tf": code}, variables={"zones": ["a", "b"]})
    assert (await operator.result()).outcome is Outcome.SUCCEEDED
    await agent.until_logged(r'joined = "a\+b"')


async def test_user_code_sees_the_containers_environment_and_nothing_of_the_agents(
    tmp_path: Path, authority: Authority
) -> None:
    env = {"PLAIN": "through", "TF_CLI_ARGS_apply": "-lock=false -no-such-flag", "TF_LOG": "TRACE"}
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec(f"env > {tmp_path}/env")})
        assert (await operator.result()).outcome is Outcome.SUCCEEDED
        seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert (seen["PLAIN"], seen["USER"]) == ("through", RUN_ID)
    assert not [name for name in seen if name.startswith(("TERRAHALT_", "TF_CLI_ARGS", "TF_LOG"))]


async def test_arguments_that_a_user_gives_to_terraform_have_no_effect(tmp_path: Path, authority: Authority) -> None:
    names = ("TF_CLI_ARGS", "TF_CLI_ARGS_plan", "TF_CLI_ARGS_apply")
    gate = tmp_path / "gate"
    (tmp_path / "sa-token").write_text("t")
    (tmp_path / "sa-ca").write_text(authority.ca)
    async with a_fake_api() as api:
        api.put_secret("arguments", **dict.fromkeys(names, "-lock=false"))
        env = {
            "TERRAHALT_API_URL": api.url,
            "TERRAHALT_API_TOKEN_FILE": str(tmp_path / "sa-token"),
            "TERRAHALT_API_CA_FILE": str(tmp_path / "sa-ca"),
        }
        async with (
            an_agent(tmp_path, authority, TF_CLI_ARGS_apply="-lock=false", **env) as agent,
            an_operator(agent) as operator,
        ):
            code = local_exec(f"echo begun; until test -e {gate}; do sleep 0.02; done")
            await operator.start({"main.tf": code}, env_from=(EnvFrom(secret="arguments"),))
            await agent.until_logged(r"\(local-exec\): begun")
            with (agent.states / "network.tfstate").open("a") as state, pytest.raises(BlockingIOError):
                fcntl.lockf(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gate.touch()
            assert (await operator.result()).outcome is Outcome.SUCCEEDED


async def test_a_second_run_of_this_agent_is_refused_and_it_leaves_after_the_ack(
    agent: AgentProcess, operator: Operator
) -> None:
    await operator.start({"main.tf": ""})
    await operator.result()
    await operator.start({"main.tf": ""}, run_id="01JOTHER")
    await operator.until(lambda: operator.refusals)
    assert operator.refusals[0].code == "Used"
    assert agent.process.returncode is None
    await operator.ack()
    assert await agent.ended() == 0


async def test_lines_of_a_megabyte_neither_block_nor_get_lost(agent: AgentProcess, operator: Operator) -> None:
    command = "head -c 3000000 /dev/zero | tr '\\0' x; echo; head -c 100000 /dev/urandom; echo; echo after"
    await operator.start({"main.tf": local_exec(command), "out.tf": f'output "big" {{ value = "{"y" * 900_000}" }}'})
    result = await operator.result()
    assert (result.outcome, result.message) == (
        Outcome.SUCCEEDED,
        "Apply complete! Resources: 1 added, 0 changed, 0 destroyed",
    )
    await agent.until_logged(r"\(local-exec\): after")
    assert max(len(line) for line in agent.log.splitlines()) < 20_000


LEFT_BEHIND = {
    "in the background": "sleep {mark} >/dev/null 2>&1 &",
    "deaf to signals": "(trap '' INT TERM HUP; sleep {mark}; sleep {mark}) >/dev/null 2>&1 &",
    "in a session of its own": "setsid sleep {mark} >/dev/null 2>&1 &",
    "forked twice, without an environment": "(env -i setsid sh -c 'sleep {mark} & sleep {mark}' &) >/dev/null 2>&1;",
    "forking again and again": "sh ./refork.sh 20000 {mark} >/dev/null 2>&1 &",
}
REFORK = '[ "$1" -gt 0 ] && { sh "$0" $(($1 - 1)) "$2" & }\n'


@pytest.mark.parametrize("how", LEFT_BEHIND)
@pytest.mark.parametrize("ending", ["succeeded", "cancelled"])
async def test_nothing_that_user_code_left_is_alive_after_the_end(
    agent: AgentProcess, operator: Operator, how: str, ending: str
) -> None:
    mark = f"98{os.getpid()}.{random.randrange(1_000_000)}"
    command = "{ " + LEFT_BEHIND[how].format(mark=mark) + " }; echo begun"
    command += "; sleep 300" if ending == "cancelled" else ""
    await operator.start({"main.tf": local_exec(command), "refork.sh": REFORK})
    if ending == "cancelled":
        await agent.until_logged(r"\(local-exec\): begun")
        await agent.until(lambda: running(mark))
        await operator.cancel()
    result = await operator.result()
    # At the moment of the report, not a while after it.
    assert command_lines(agent.descendants()) == []
    assert running(mark) == []
    expected = Outcome.SUCCEEDED if ending == "succeeded" else Outcome.CANCELLED
    assert result.outcome is expected, result


async def test_a_grandchild_that_holds_the_pipe_holds_up_no_cancel(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("(setsid sleep 297 &); echo begun")})
    await agent.until_logged(r"\(local-exec\): begun")
    await operator.cancel()
    assert (await operator.result(10)).outcome is Outcome.CANCELLED
    assert agent.descendants() == []


async def test_a_thousand_orphans_leave_no_zombie_and_the_right_exit_code(
    agent: AgentProcess, operator: Operator
) -> None:
    command = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done; exit 7"
    await operator.start({"main.tf": local_exec(command)})
    result = await operator.result()
    assert "exit status 7" in result.message
    assert descendants(agent.process.pid, with_zombies=True) == []


async def test_a_working_directory_that_cannot_be_written_starts_no_terraform(
    tmp_path: Path, authority: Authority
) -> None:
    async with an_agent(tmp_path, authority, TERRAHALT_WORK="/proc/terrahalt") as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": ""})
        result = await operator.result()
        assert (result.outcome, result.reason) == (Outcome.FAILED, "WorkdirNotWritable")
        assert "/proc/terrahalt" in result.message
        assert f"{engine.TYPE} 1" not in agent.log


async def test_an_agent_without_its_engine_ends_before_it_takes_a_task(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(AssertionError, match="/nowhere/terraform is not in this image"):
        async with an_agent(tmp_path, authority, TERRAHALT_ENGINE_PATH="/nowhere/terraform"):
            pass


async def test_an_engine_that_can_not_be_started_is_named(tmp_path: Path, authority: Authority) -> None:
    lost = tmp_path / "engine"
    lost.symlink_to(program())
    env = {"TERRAHALT_ENGINE_PATH": str(lost)}
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        lost.unlink()
        await operator.start({"main.tf": ""})
        result = await operator.result()
        assert (result.outcome, result.reason) == (Outcome.FAILED, "InitFailed")
        assert f"{lost} could not be started: No such file or directory" in result.message


async def test_terraform_killed_from_outside_is_a_failure(agent: AgentProcess, operator: Operator) -> None:
    await operator.start({"main.tf": local_exec("echo begun; kill -9 $PPID; sleep 300")})
    result = await operator.result()
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "TerraformKilled", -9)
    assert (result.state, result.open_addresses) == (StateCondition.INCOMPLETE, ("terraform_data.a",))
    assert agent.descendants() == []


@pytest.mark.parametrize("name", ["ABRT", "SEGV"])
async def test_a_terraform_that_crashes_is_a_failure_with_what_it_was_doing(
    agent: AgentProcess, operator: Operator, name: str
) -> None:
    await operator.start({"main.tf": local_exec(f"echo begun; kill -{name} $PPID; sleep 300")})
    result = await operator.result()
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "TerraformCrashed", 2)
    assert (result.state, result.open_addresses) == (StateCondition.INCOMPLETE, ("terraform_data.a",))
    assert agent.descendants() == []


async def test_a_state_that_cannot_be_saved_is_told_with_its_place(agent: AgentProcess, operator: Operator) -> None:
    # From here on terraform can write no file of more than 1 MB; its state has more.
    line = "x" * 2000
    big = f"""
resource "terraform_data" "big" {{
  input      = join("", [for n in range(1000) : "{line}"])
  depends_on = [terraform_data.a]
}}
"""
    await operator.start({"main.tf": local_exec("prlimit --pid $PPID --fsize=1000000") + big})
    result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "NotPersisted")
    assert result.state is StateCondition.NOT_PERSISTED
    assert f"{agent.module}/errored.tfstate" in result.message
    assert agent.descendants() == []


async def test_variables_of_secrets_arrive_as_their_types_and_are_in_no_command_line_environment_or_log(
    tmp_path: Path, authority: Authority
) -> None:
    code = """
    variable "password" {}
    variable "size" { type = number }
    variable "zones" { type = list(string) }
    variable "region" {}
    """ + local_exec(
        "tr '\\0' '\\n' </proc/$PPID/environ >env; tr '\\0' ' ' </proc/$PPID/cmdline >args; "
        "echo ${var.password} ${var.size + 1} ${var.zones[1]} ${var.region} | tee said; env >>env"
    )
    async with a_fake_api() as api:
        api.put_secret(
            "net", password="hunter2hunter2", region="secret region", **{"zones.json": '["zone-a", "zone-b"]'}
        )
        api.put("configmaps", "net", data={"size": "41", "nowhere": "1"})
        sources = (ConfigFrom(secret="net"), ConfigFrom(config_map="net"))
        values = Values(source=Source(inline={"main.tf": code}), variables_from=sources)
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            await operator.start({}, source=Source(), values=values, variables={"region": "eu-west-1"})
            result = await operator.result()
            assert result.outcome is Outcome.SUCCEEDED, result
            assert (agent.module / "said").read_text() == "hunter2hunter2 42 zone-b eu-west-1\n"
            assert "apply" in (agent.module / "args").read_text()
            seen = (agent.module / "env").read_text() + (agent.module / "args").read_text()
            assert "HOME=" in seen
            await agent.until_logged(r"Succeeded")
            seen += agent.log + agent.termination_message + repr(operator.received)
    assert "[redacted] 42 [redacted] eu-west-1" in seen
    assert "Value for undeclared variable" in seen
    for secret in ("hunter2hunter2", "zone-b", "secret region"):
        assert secret not in seen


OUTPUTS = """
output "url" { value = "https://example.com/" }
output "zones" { value = ["a", "b"] }
output "password" {
  value     = "hunter2hunter2"
  sensitive = true
}
"""


@pytest.mark.parametrize("include_sensitive", [False, True])
async def test_after_an_apply_its_outputs_are_in_the_secret_and_nowhere_else(
    tmp_path: Path, authority: Authority, include_sensitive: bool
) -> None:
    to = OutputsTo(secret="network-outputs", include_sensitive=include_sensitive)
    async with a_fake_api() as api:
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            values = Values(source=Source(inline={"main.tf": OUTPUTS}), outputs_to=to)
            await operator.start({}, source=Source(), values=values)
            result = await operator.result()
            assert agent.descendants() == []
            assert (result.outcome, result.outputs) == (
                Outcome.SUCCEEDED,
                PublishedOutputs(secret="network-outputs", count=2 + include_sensitive),
            )
            sealed = unseal(agent.termination_message, KEY, RUN_ID)
            assert sealed is not None
            assert sealed.result == result
            assert not list(agent.work.glob("*/logs/output.log"))
            await agent.until_logged(r"Succeeded")
            told = agent.log + repr(operator.received)
        secret = api.secret("network-outputs")
    found = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    asked_for = {"password": b"hunter2hunter2"} if include_sensitive else {}
    assert found == {"url": b"https://example.com/", "zones": b'["a","b"]'} | asked_for
    left_out = None if include_sensitive else '["password"]'
    assert secret["metadata"]["annotations"].get("terrahalt.dev/left-out") == left_out
    assert "hunter2" not in told


async def test_a_secret_of_somebody_else_is_kept_and_the_apply_is_as_done(tmp_path: Path, authority: Authority) -> None:
    async with a_fake_api() as api:
        theirs = {"metadata": {"resourceVersion": "7"}, "data": {}}
        api.put("secrets", "network-outputs", **theirs)
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            values = Values(source=Source(inline={"main.tf": OUTPUTS}), outputs_to=OutputsTo(secret="network-outputs"))
            await operator.start({}, source=Source(), values=values)
            result = await operator.result()
        assert api.secret("network-outputs") == theirs
    assert (result.outcome, result.reason, result.state) == (Outcome.SUCCEEDED, "Applied", StateCondition.COMPLETE)
    assert "its outputs are not in Secret network-outputs: Secret network-outputs is there already" in result.message


async def test_while_outputs_are_written_the_true_result_is_on_record_and_a_cancel_or_a_kill_changes_nothing_of_it(
    tmp_path: Path, authority: Authority
) -> None:
    async with a_fake_api() as api:
        api.may_answer.clear()
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            values = Values(source=Source(inline={"main.tf": OUTPUTS}), outputs_to=OutputsTo(secret="network-outputs"))
            await operator.start({}, source=Source(), values=values)
            await agent.until(lambda: any(path.endswith("/network-outputs") for path in api.asked))
            await operator.cancel()
            await operator.until(lambda: any(report.cancel for report in operator.reports))
            assert all(report.result is None for report in operator.reports)
            agent.process.kill()
            await agent.ended()
            sealed = unseal(agent.termination_message, KEY, RUN_ID)
        api.may_answer.set()
    assert sealed is not None
    assert sealed.result is not None
    assert (sealed.result.outcome, sealed.result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert sealed.result.outputs is not None
    assert sealed.result.outputs.problem == "the agent ended before they were written"


async def test_no_secret_value_leaves_the_pod_whatever_user_code_prints(tmp_path: Path, authority: Authority) -> None:
    secret = 'hunter2 & "more" of it'
    forms = [secret, json.dumps(secret)[1:-1], base64.b64encode(secret.encode()).decode(), quote(secret)]
    code = local_exec('echo plain $KEY; printf %s "$KEY" | base64 -w0; echo; printf %s "$KEY" > key; exit 3')
    async with a_fake_api() as api:
        api.put_secret("aws", KEY=secret)
        api.put("configmaps", "source", data={"main.tf": code})
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            source, env_from = Source(config_map="source"), (EnvFrom(secret="aws"),)
            await operator.send(msgspec.structs.replace(a_start({}), source=source, env_from=env_from))
            result = await operator.result()
            assert result.outcome is Outcome.FAILED
            assert (agent.module / "key").read_text() == secret
            await agent.until_logged(r"Failed \(ApplyFailed\)")
            said = agent.log + agent.termination_message + repr(operator.received)
    assert "plain [redacted]" in said
    for form in forms:
        assert form not in said


async def test_an_agent_that_stands_still_for_half_a_minute_neither_stops_terraform_nor_loses_a_line(
    agent: AgentProcess, operator: Operator, tmp_path: Path
) -> None:
    talk = "for n in $(seq 10); do head -c 1000000 /dev/zero | tr '\\0' x; echo; echo line $n; sleep 3; done"
    await operator.start({"main.tf": local_exec(f"echo begun; {talk}; exit 9")})
    await agent.until_logged(r"\(local-exec\): begun")
    await agent.freeze()
    await agent.until(lambda: not agent.descendants(), 120)
    agent.process.send_signal(signal.SIGCONT)
    result = await operator.result()
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 1)
    assert "exit status 9" in result.message
    await agent.until_logged(r"\(local-exec\): line 10")
    said = re.findall(r"\(local-exec\): line (\d+)", agent.log)
    assert said == [str(n) for n in range(1, 11)]
