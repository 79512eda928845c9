"""Whatever terraform prints, and whoever does not read it: it is neither blocked nor killed by its own output."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from terrahalt_agent.adapters.log_tail import ROOM_BYTES
from terrahalt_protocol.messages import CancelMode, Outcome, Result, Rung, StateCondition
from tests.agent.fake_api import FakeApi, a_fake_api
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import RUN_ID, AgentProcess, Operator, an_agent, an_operator, api_access, program
from tests.agent_terraform.modules import local_exec
from tests.agent_terraform.test_several_runs import ANOTHER, NEXT_ID, end_of, fresh
from tests.small_disk import a_small_disk

pytestmark = pytest.mark.terraform
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TITLE = b"\x1b]0;owned\x07\x1b[2J\x9b2J"
_LONG_NAME = "a" * 200
"""It is in each line several times, so that a log grows fast: terraform itself is slow in what provisioners print."""
_FORGED = b'{"@message":"x","hook":{"resource":{"addr":"a"},"action":"create"},"type":"apply_complete"}'


class Reader:
    """Copies what comes through a pipe to a file, as a container runtime does with a pod's log, until it stalls."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._pipe, self.writer = os.pipe()
        self.resume()

    def stall(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe)

    def resume(self) -> None:
        asyncio.get_running_loop().add_reader(self._pipe, self._copy)

    def close(self) -> None:
        self.stall()
        os.close(self._pipe)
        os.close(self.writer)

    def _copy(self) -> None:
        with self._log.open("ab") as file:
            file.write(os.read(self._pipe, 1024 * 1024))


@contextmanager
def a_reader(log: Path) -> Iterator[Reader]:
    reader = Reader(log)
    try:
        yield reader
    finally:
        reader.close()


def only_instance(agent: AgentProcess) -> str:
    (resource,) = json.loads((agent.states / "network.tfstate").read_text())["resources"]
    return str(resource["instances"][0].get("status", "whole"))


def end_of_file(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return file.read()


def junk(folder: Path) -> Path:
    content = random.Random(7).randbytes(300_000) + bytes(range(256)) + _TITLE + b"\n" + _FORGED + b"\n\xff\xfe\0"
    (folder / "junk").write_bytes(content)
    return folder / "junk"


async def test_binary_junk_of_a_provisioner_is_a_log_like_any_other(
    agent: AgentProcess, operator: Operator, tmp_path: Path
) -> None:
    await operator.start({"main.tf": local_exec(f"echo begun; cat {junk(tmp_path)}; echo; echo last; exit 9")})
    final = await operator.final_report()
    assert agent.descendants() == []
    assert final.result is not None
    assert (final.result.outcome, final.result.reason, final.result.exit_code) == (Outcome.FAILED, "ApplyFailed", 1)
    assert (final.result.state, final.resources_done) == (StateCondition.COMPLETE, 0)
    assert only_instance(agent) == "tainted"
    await agent.until_logged(r"\(local-exec\): last")
    assert _UNPRINTABLE.findall((agent.folder / "agent.log").read_bytes().decode()) == []
    assert _UNPRINTABLE.findall(final.message + final.result.message) == []


async def test_binary_junk_on_the_engines_own_output_hides_nothing_of_the_run(
    tmp_path: Path, authority: Authority
) -> None:
    noisy = tmp_path / "noisy"
    noisy.write_text(f'#!/bin/sh\ncat {junk(tmp_path)}; echo\nexec {program()} "$@"\n')
    noisy.chmod(0o755)
    async with (
        an_agent(tmp_path, authority, TERRAHALT_ENGINE_PATH=str(noisy)) as agent,
        an_operator(agent) as operator,
    ):
        await operator.start({"main.tf": local_exec("echo done")})
        final = await operator.final_report()
        assert only_instance(agent) == "whole"
        await agent.until_logged(r"Succeeded \(Applied\)")
        assert _UNPRINTABLE.findall((agent.folder / "agent.log").read_bytes().decode()) == []
    assert final.result is not None
    assert final.result.outcome is Outcome.SUCCEEDED
    assert _UNPRINTABLE.findall(final.result.message) == []


async def test_when_nobody_reads_the_pods_log_terraform_goes_on_and_a_cancel_ends_it(
    tmp_path: Path, authority: Authority
) -> None:
    lines, go = 90_000, tmp_path / "go"
    printing = f"until [ -e {go} ]; do sleep 0.02; done; yes x | head -n {lines}"
    with a_reader(tmp_path / "agent.log") as reader:
        async with an_agent(tmp_path, authority, reader.writer) as agent, an_operator(agent) as operator:
            await operator.start(
                {"main.tf": local_exec(f"echo begun; {printing}; echo last; exec sleep 300", _LONG_NAME)}
            )
            await agent.until_logged(r"\(local-exec\): begun")
            reader.stall()
            go.touch()
            await agent.until(lambda: b"(local-exec): last" in end_of_file(agent.work / RUN_ID / "logs/apply.jsonl"))
            asked_s = time.monotonic()
            await operator.cancel()
            final = await operator.final_report()
            assert agent.descendants() == []
            assert time.monotonic() - asked_s < 30.0
            assert only_instance(agent) == "tainted"
            assert final.result is not None
            assert final.cancel is not None
            assert (final.result.outcome, final.cancel.rung) == (Outcome.CANCELLED, Rung.INTERRUPT)
            assert "lines were dropped" not in agent.log
            reader.resume()
            await agent.until(lambda: b"lines were dropped" in end_of_file(agent.folder / "agent.log"))
            shown = len(re.findall(r"\(local-exec\): x", agent.log))
            dropped = sum(int(count) for count in re.findall(r"terrahalt: (\d+) lines were dropped", agent.log))
            assert 0 < shown < lines <= shown + dropped
            # Some others are of the end: terraform's error repeats the last 8 KiB of what was printed.
            assert shown + dropped < lines + 8 * 1024 // len("x\n") + 100


async def test_a_log_larger_than_the_disk_does_not_fill_it_though_the_agent_has_to_catch_up(
    tmp_path: Path, authority: Authority
) -> None:
    half, go_on = "yes x | head -n 75000", tmp_path / "go-on"
    until_told = f"until test -e {go_on}; do sleep 0.05; done"
    code = local_exec(f"echo begun; {half}; {until_told}; {half}; echo last", _LONG_NAME)
    with a_small_disk(tmp_path / "work", mebibytes=128) as disk:
        async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
            await operator.start({"main.tf": code})
            await agent.until_logged(r"\(local-exec\): begun")
            log = disk / RUN_ID / "logs/apply.jsonl"
            agent.process.send_signal(signal.SIGSTOP)
            await agent.until(lambda: log.stat().st_size > 64 * 1024 * 1024)
            agent.process.send_signal(signal.SIGCONT)
            await agent.until(lambda: log.stat().st_blocks * 512 <= ROOM_BYTES)
            go_on.touch()
            final = await operator.final_report()
            assert log.stat().st_size > 150 * 1024 * 1024
            assert log.stat().st_blocks * 512 <= ROOM_BYTES
            assert only_instance(agent) == "whole"
            await agent.until_logged(r"\(local-exec\): last")
            assert re.search(r"terrahalt: \d+ lines were dropped", agent.log)
    assert final.result is not None
    assert (final.result.outcome, final.result.state) == (Outcome.SUCCEEDED, StateCondition.COMPLETE)


# ---- what is kept of it when the pod is gone


def kept(api: FakeApi, run_id: str = RUN_ID) -> str:
    packed = base64.b64decode(api.secret(f"terrahalt-log-{run_id.lower()}")["data"]["log.gz"])
    return gzip.decompress(packed).decode()


@pytest.mark.parametrize("end", ["done", "failed", "cancelled", "forced"])
async def test_whatever_end_a_run_has_all_that_it_has_said_is_kept(
    tmp_path: Path, authority: Authority, end: str
) -> None:
    last = {"done": "", "failed": "exit 3", "cancelled": "exec sleep 300", "forced": "trap '' INT; sleep 300 & wait"}
    command = f"for n in $(seq 300); do echo line $n; done; {last[end]}"
    async with a_fake_api() as api:
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            await operator.start({"main.tf": local_exec(command)})
            await agent.until_logged(r"\(local-exec\): line 300")
            if end in ("cancelled", "forced"):
                await operator.cancel(CancelMode.FORCE if end == "forced" else CancelMode.GRACEFUL)
            result: Result = await operator.result()
            assert result.log_kept
            await agent.until_logged(rf"run {RUN_ID}: {result.outcome}")
            assert agent.descendants() == []
            text, shown = kept(api), agent.log
    assert result.forced is (end == "forced")
    assert re.findall(r"\(local-exec\): line (\d+)", text) == [str(n) for n in range(1, 301)]
    assert text in shown
    *_, rest = shown.partition(text)
    assert [line for line in rest.splitlines() if f"run {RUN_ID}: {result.outcome}" not in line] == []


async def test_a_log_has_nothing_of_the_run_before_it(tmp_path: Path, authority: Authority) -> None:
    async with a_fake_api() as api:
        env = api_access(tmp_path, authority, api.url) | {"TERRAHALT_MAX_TASKS": "2"}
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            await operator.start({"main.tf": local_exec("echo the first")})
            await operator.result()
            await operator.ack()
            await fresh(operator)
            await operator.start({"main.tf": local_exec("echo the second")}, run_id=NEXT_ID, **ANOTHER)
            await end_of(operator, NEXT_ID)
            first, second = kept(api), kept(api, NEXT_ID)
    assert "(local-exec): the first" in first
    assert "(local-exec): the second" in second
    assert "the first" not in second
    assert RUN_ID not in second.replace(NEXT_ID, "")


async def test_a_run_ends_as_soon_and_as_well_where_its_log_can_not_be_kept(
    tmp_path: Path, authority: Authority
) -> None:
    async with a_fake_api() as api:
        api.may_answer.clear()
        env = api_access(tmp_path, authority, api.url)
        async with an_agent(tmp_path, authority, **env) as agent, an_operator(agent) as operator:
            await operator.start({"main.tf": local_exec("true")})
            result = await operator.result()
            await agent.until_logged("its log is not kept: there was no time for it")
        api.may_answer.set()
    assert (result.outcome, result.reason, result.log_kept) == (Outcome.SUCCEEDED, "Applied", False)
