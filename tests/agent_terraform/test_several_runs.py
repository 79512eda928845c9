"""One agent, one run after the other: each begins in a clean room, on real processes and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terrahalt_protocol.messages import Hello, Outcome, Report, TaskRef
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import RUN_ID, Operator, an_agent, an_operator, running
from tests.agent_terraform.modules import local_exec

pytestmark = pytest.mark.terraform
NEXT_ID = "01JNEXTRUN"
ANOTHER: dict[str, Any] = {
    "task": TaskRef(namespace="team-a", name="another", uid="another-uid"),
    "workspace": "another",
}


async def end_of(operator: Operator, run_id: str) -> Report:
    ends = await operator.until(lambda: [r for r in operator.reports if r.run_id == run_id and r.result is not None])
    assert isinstance(ends[0], Report)
    return ends[0]


async def fresh(operator: Operator) -> Hello:
    hellos: Any = await operator.until(lambda: [m for m in operator.received if isinstance(m, Hello)][1:])
    assert isinstance(hellos[0], Hello)
    return hellos[0]


async def test_the_next_run_finds_nothing_of_the_one_before(tmp_path: Path, authority: Authority) -> None:
    scratch, seen = tmp_path / "scratch", tmp_path / "seen"
    scratch.mkdir()
    leaving = (
        f"echo secret > {scratch}/left; mkdir {scratch}/locked; echo x > {scratch}/locked/file; "
        f"chmod 0 {scratch}/locked; echo secret > ../../beside; setsid sleep 701 >/dev/null 2>&1 & exit 0"
    )
    looking = f"(ls -A {scratch}; ls -A ../..; env; cat {tmp_path}/termination-log) > {seen}"
    several = {"TERRAHALT_MAX_TASKS": "2", "TERRAHALT_SCRATCH": str(scratch)}
    async with an_agent(tmp_path, authority, **several) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec(leaving)})
        first = await end_of(operator, RUN_ID)
        assert first.result is not None
        assert first.result.outcome is Outcome.SUCCEEDED
        assert RUN_ID in agent.termination_message
        assert (agent.work / "beside").exists()
        await operator.ack()
        hello = await fresh(operator)
        assert (hello.used, hello.runs, hello.boot_id) == (False, (), operator.hello.boot_id)
        assert (list(scratch.iterdir()), list(agent.work.iterdir())) == ([], [])
        assert agent.termination_message == ""
        assert (agent.descendants(), running("sleep 701")) == ([], [])

        await operator.start({"main.tf": local_exec(looking)}, run_id=NEXT_ID, **ANOTHER)
        second = await end_of(operator, NEXT_ID)
        assert second.result is not None
        assert second.result.outcome is Outcome.SUCCEEDED, second.result.message
        found = seen.read_text()
        assert found.splitlines()[0] == NEXT_ID, "the first thing to be seen is its own directory"
        assert f"USER={NEXT_ID}" in found
        assert f"run {NEXT_ID}: its agent has written no report" in found, "the room of its own report is taken"
        assert RUN_ID not in found
        await operator.ack(NEXT_ID)
        assert await agent.ended() == 0


async def test_an_agent_whose_room_can_not_be_cleaned_takes_no_other_run(tmp_path: Path, authority: Authority) -> None:
    scratch = tmp_path / "scratch"
    several = {"TERRAHALT_MAX_TASKS": "2", "TERRAHALT_SCRATCH": str(scratch)}  # it is not there
    async with an_agent(tmp_path, authority, **several) as agent, an_operator(agent) as operator:
        await operator.start({"main.tf": local_exec("true")})
        await end_of(operator, RUN_ID)
        await operator.ack()
        assert await agent.ended() == 0
        assert "this agent takes no other run, something of this one is left" in agent.log
        assert len([m for m in operator.received if isinstance(m, Hello)]) == 1
