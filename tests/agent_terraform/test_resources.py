"""Memory and disk that run out under a real terraform: it is ended in time, and what it has done is in the state."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrahalt_agent.adapters.log_tail import ROOM_BYTES
from terrahalt_protocol.messages import Backend, LockCondition, Outcome, Rung, Source, StateCondition
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import AgentProcess, an_agent, an_operator, freeze_provider
from tests.agent_terraform.modules import local_exec, only_in_apply, sleeping, slow_resource, thing, trial
from tests.backends.http_state import an_http_state
from tests.cloud import Cloud
from tests.small_disk import a_small_disk, fill

pytestmark = pytest.mark.terraform
MIB = 1024 * 1024


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A container with a limit that a quarter of is used: the files of cgroup v2, which only a test writes."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "memory.max").write_text(f"{512 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon {128 * MIB}\nactive_file 0\ninactive_file 0\n")
    use(folder, 128)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The working directory of the agent; its states lie elsewhere, as those of a cluster do."""
    with a_small_disk(tmp_path / "work", mebibytes=32) as disk:
        yield disk


def use(cgroup: Path, mebibytes: int) -> None:
    (cgroup / "memory.new").write_text(f"{mebibytes * MIB}\n")
    (cgroup / "memory.new").rename(cgroup / "memory.current")


def status_in_state(agent: AgentProcess) -> dict[str, str]:
    state = json.loads((agent.states / "network.tfstate").read_text())
    return {
        f"{resource['type']}.{resource['name']}": instance.get("status", "whole")
        for resource in state["resources"]
        for instance in resource["instances"]
    }


def lock_of(agent: AgentProcess) -> Path:
    return agent.states / ".network.tfstate.lock.info"


# -- memory


async def test_memory_that_runs_out_kills_the_providers_at_once_and_terraform_saves_and_unlocks(
    tmp_path: Path, authority: Authority, cgroup: Path, providers: dict[str, str]
) -> None:
    env = providers | {"TERRAHALT_CGROUP": str(cgroup)}
    async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        await operator.start(slow_resource())
        await agent.until_logged(r"time_sleep.slow: Creating")
        await agent.until_logged(r"terraform_data.saved: Creation complete")
        freeze_provider(agent, "time")  # it would never hear a SIGINT
        assert lock_of(agent).exists()
        begun_s = time.monotonic()
        use(cgroup, 470)
        final = await operator.final_report()
        assert agent.descendants() == []
        assert time.monotonic() - begun_s < 10.0
        assert status_in_state(agent) == {"terraform_data.saved": "whole"}
        assert not lock_of(agent).exists()
    result, cancel = final.result, final.cancel
    assert result is not None
    assert (result.outcome, result.reason) == (Outcome.FAILED, "OutOfMemory")
    assert (result.state, result.open_addresses) == (StateCondition.INCOMPLETE, ("time_sleep.slow",))
    assert result.lock.condition is LockCondition.RELEASED
    assert "470 MiB of the agent's 512 MiB of memory were in use" in result.message
    assert cancel is not None
    assert (cancel.rung, cancel.cause) == (Rung.KILL_PROVIDERS, "OutOfMemory")


async def test_memory_that_runs_out_before_the_first_operation_ends_terraform_by_its_providers(
    tmp_path: Path, authority: Authority, cgroup: Path, providers: dict[str, str], cloud: Cloud
) -> None:
    env = providers | {"TERRAHALT_CGROUP": str(cgroup), "TRIAL_CLOUD": cloud.url}
    code = trial(thing("a"), configure=only_in_apply(["hang"]))
    async with an_http_state() as http, an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
        backend = Backend(type="http", config=http.config | http.secret_config, source=Source(inline=code))
        await operator.start({}, source=Source(), backend=backend)
        await cloud.until_begun("configure", 2)
        use(cgroup, 470)
        final = await operator.final_report()
        assert agent.descendants() == []
        assert (http.lock, cloud.begun["create"]) == (None, 0)
    result = final.result
    assert result is not None
    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, "OutOfMemory", 1)
    assert (result.state, result.lock.condition) == (StateCondition.COMPLETE, LockCondition.RELEASED)


async def test_a_cache_of_files_ends_no_run(tmp_path: Path, authority: Authority, cgroup: Path) -> None:
    (cgroup / "memory.stat").write_text(f"anon {128 * MIB}\nactive_file {380 * MIB}\ninactive_file {30 * MIB}\n")
    use(cgroup, 511)
    async with (
        an_agent(tmp_path, authority, TERRAHALT_CGROUP=str(cgroup)) as agent,
        an_operator(agent) as operator,
    ):
        await operator.start({"main.tf": local_exec("sleep 1")})  # four looks
        result = await operator.result()
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Applied")


async def test_where_memory_is_short_from_the_start_nothing_is_started(
    tmp_path: Path, authority: Authority, cgroup: Path
) -> None:
    use(cgroup, 500)
    async with (
        an_agent(tmp_path, authority, TERRAHALT_CGROUP=str(cgroup)) as agent,
        an_operator(agent) as operator,
    ):
        await operator.start(sleeping())
        result = await operator.result()
        assert agent.descendants() == []
        assert not (agent.states / "network.tfstate").exists()
    assert (result.outcome, result.reason, result.state) == (Outcome.FAILED, "OutOfMemory", StateCondition.COMPLETE)


# -- disk


async def test_a_disk_that_runs_full_ends_the_run_with_its_state_saved(
    tmp_path: Path, authority: Authority, small_disk: Path
) -> None:
    code = local_exec("true", "first") + local_exec(
        f"head -c {24 * MIB} /dev/zero > {small_disk}/big; exec sleep 300", "writer", "terraform_data.first"
    )
    async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": code})
        final = await operator.final_report()
        assert agent.descendants() == []
        assert status_in_state(agent) == {"terraform_data.first": "whole", "terraform_data.writer": "tainted"}
        assert not lock_of(agent).exists()
    result, cancel = final.result, final.cancel
    assert result is not None
    assert (result.outcome, result.reason) == (Outcome.FAILED, "DiskPressure")
    assert (result.exit_code, result.state) == (1, StateCondition.COMPLETE)
    assert "the disk of the working directory was" in result.message
    assert cancel is not None
    assert (cancel.rung, cancel.cause) == (Rung.INTERRUPT, "DiskPressure")


async def test_where_lines_found_no_room_the_state_is_called_unknown(
    tmp_path: Path, authority: Authority, small_disk: Path
) -> None:
    code = f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.02; done; yes x | head -n 10000"
    async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec(code, "a" * 200)})
        await agent.until_logged(r"\(local-exec\): begun")
        agent.process.send_signal(signal.SIGSTOP)
        fill(small_disk)
        (tmp_path / "go").touch()
        await agent.until(lambda: agent.descendants() == [])
        agent.process.send_signal(signal.SIGCONT)
        result = await operator.result()
        assert list(status_in_state(agent).values()) == ["whole"]
        assert "Apply complete!" not in agent.log
    assert (result.outcome, result.exit_code, result.state) == (Outcome.SUCCEEDED, 0, StateCondition.UNKNOWN)


async def test_on_a_full_disk_terraform_is_heard_to_its_end_and_can_be_cancelled(
    tmp_path: Path, authority: Authority, small_disk: Path
) -> None:
    """To the last byte, between two looks: not a line of what terraform says then may be lost."""
    name = "a" * 1000  # more than fits into the page that the log has begun
    async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec("echo begun; exec sleep 300", name)})
        await agent.until_logged(r"\(local-exec\): begun")
        agent.process.send_signal(signal.SIGSTOP)
        fill(small_disk)
        agent.process.send_signal(signal.SIGCONT)
        final = await operator.final_report()
        assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize <= ROOM_BYTES
        assert agent.descendants() == []
        assert status_in_state(agent) == {f"terraform_data.{name}": "tainted"}
        await agent.until_logged("execution halted")
    result = final.result
    assert result is not None
    assert (result.outcome, result.reason, result.state) == (Outcome.FAILED, "DiskPressure", StateCondition.COMPLETE)
    assert "100 % full, 0 MiB were free" in result.message
