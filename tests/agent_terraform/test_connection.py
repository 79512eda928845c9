"""Whom the agent lets in, whom it obeys, and what it tells to whom."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from terrahalt_agent.app import GOES_AFTER_S
from terrahalt_agent.core.ladder import Times
from terrahalt_protocol.codec import FromAgentDecoder
from terrahalt_protocol.messages import Hello, Leave, Outcome, RefusalCode, Refused, Start, Step
from terrahalt_protocol.signing import unseal
from tests.agent_terraform.certificates import Authority, an_authority
from tests.agent_terraform.harness import KEY, RUN_ID, AgentProcess, Operator, a_start, an_agent, an_operator
from tests.agent_terraform.modules import local_exec, sleeping

pytestmark = pytest.mark.terraform


async def dial(agent: AgentProcess, context: ssl.SSLContext) -> None:
    url = f"wss://127.0.0.1:{agent.control_port}/control"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context) as socket:
        await socket.receive(timeout=10)
        raise AssertionError("the agent let a stranger in") if not socket.closed else ConnectionError


async def test_a_client_without_a_certificate_is_refused(agent: AgentProcess, authority: Authority) -> None:
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await dial(agent, authority.client_context(with_certificate=False))
    assert "operator at" not in agent.log


async def test_a_client_of_another_ca_is_refused(agent: AgentProcess, tmp_path: Path) -> None:
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await dial(agent, an_authority(tmp_path, "stranger").client_context())
    assert "operator at" not in agent.log


async def test_hello_says_who_it_is_and_proves_it(agent: AgentProcess, operator: Operator) -> None:
    hello = operator.hello
    assert (hello.pod_name, hello.namespace, hello.pod_uid) == ("agent-0", "team-a", "pod-uid")
    assert (hello.identity_token, hello.runs, hello.used) == ("a-projected-token", (), False)
    assert hello.spares_apply
    assert hello.leaves


async def test_each_hello_has_the_token_that_the_kubelet_has_renewed_meanwhile(
    tmp_path: Path, authority: Authority
) -> None:
    async with an_agent(tmp_path, authority) as agent:
        for token in ("of this hour", "of the next"):
            (tmp_path / "token").write_text(token)
            async with an_operator(agent) as operator:
                assert operator.hello.identity_token == token


async def test_every_start_of_the_process_has_its_own_key_and_boot_id(tmp_path: Path, authority: Authority) -> None:
    seen = set()
    for _ in range(2):
        async with an_agent(tmp_path, authority) as agent, an_operator(agent) as operator:
            connection = operator.socket.get_extra_info("ssl_object")
            seen.add((operator.hello.boot_id, connection.getpeercert(binary_form=True)))
    assert len({boot_id for boot_id, _ in seen}) == len({certificate for _, certificate in seen}) == 2


async def test_a_stale_operator_commands_nothing(agent: AgentProcess) -> None:
    async with an_operator(agent, epoch=7) as leader, an_operator(agent, epoch=6) as deposed:
        await leader.start(sleeping(), epoch=7)
        await agent.until_logged(r"\(local-exec\): begun")
        await deposed.cancel()
        await deposed.until(lambda: deposed.refusals)
        assert (deposed.refusals[0].code, deposed.refusals[0].highest_epoch) == (RefusalCode.STALE_EPOCH, 7)
        assert agent.descendants() != []
        assert "Interrupt received" not in agent.log
        async with an_operator(agent) as late:
            assert late.hello.highest_epoch == 7
        await leader.cancel()
        # Both hear of it: the deposed one may still write nothing, but it may read.
        assert await leader.result() == await deposed.result()


async def test_a_final_report_comes_with_each_connection_until_it_is_acknowledged(agent: AgentProcess) -> None:
    async with an_operator(agent) as first:
        await first.start({"main.tf": ""})
        result = await first.result()
    async with an_operator(agent) as second:
        assert await second.result() == result
        assert second.hello.used
        await second.ack()
        assert await agent.ended() == 0


async def test_an_agent_that_has_had_its_run_lets_the_next_one_begin_before_it_ends(agent: AgentProcess) -> None:
    async with an_operator(agent) as operator:
        await operator.start({"main.tf": ""})
        await operator.result()
        acknowledged_s = time.monotonic()
        await operator.ack()
        assert await agent.ended() == 0
        assert time.monotonic() - acknowledged_s >= GOES_AFTER_S


async def test_an_idle_agent_that_is_told_to_leave_ends(agent: AgentProcess, operator: Operator) -> None:
    await operator.send(Leave(epoch=1))
    assert await agent.ended() == 0


async def test_a_start_of_100_kilobytes_arrives_in_parts(agent: AgentProcess, operator: Operator) -> None:
    files = {f"notes-{n}.md": "ä" * 10_000 for n in range(10)} | {"main.tf": ""}
    await operator.start(files)
    await operator.result()
    assert (agent.module / "notes-9.md").read_text() == "ä" * 10_000


@pytest.mark.parametrize("text", ["{", '{"type":"Dance"}', '{"type":"Start","epoch":"one"}', "[]"])
async def test_what_cannot_be_read_is_refused_with_both_sides_named_and_the_connection_ends(
    agent: AgentProcess, text: str
) -> None:
    url = f"wss://127.0.0.1:{agent.control_port}/control"
    context = agent.authority.client_context()
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context) as socket:
        await socket.send_str(text)
        frames = [frame.data async for frame in socket if frame.type is aiohttp.WSMsgType.TEXT]
    hello, refused = (FromAgentDecoder().feed(frame) for frame in frames)
    assert isinstance(hello, Hello)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.MALFORMED
    assert "this agent speaks protocol 1 and can't read a message of the operator" in refused.message
    async with an_operator(agent) as operator:
        assert operator.hello.runs == ()


async def test_a_run_id_that_would_leave_the_folder_is_refused(agent: AgentProcess, operator: Operator) -> None:
    start = a_start({"main.tf": ""}, run_id="../../tmp/x")
    assert isinstance(start, Start)
    await operator.send(start)
    await operator.until(lambda: operator.refusals)
    assert operator.refusals[0].code is RefusalCode.MALFORMED
    assert list(agent.work.iterdir()) == []


async def test_an_idle_agent_ends_at_once_when_its_pod_does(agent: AgentProcess) -> None:
    async with an_operator(agent):
        asked_s = time.monotonic()
        agent.process.terminate()
        assert await agent.ended(5) == 0
        assert time.monotonic() - asked_s < Times().farewell_s


async def test_a_run_whose_operator_stays_away_is_ended_where_its_pool_wants_that(
    tmp_path: Path, authority: Authority
) -> None:
    async with an_agent(tmp_path, authority, TERRAHALT_OPERATOR_LOSS_SECONDS="1") as agent:
        async with an_operator(agent) as operator:
            await operator.start(sleeping())
            await agent.until_logged(r"\(local-exec\): begun")
            lost_s = time.monotonic()
        await agent.until(lambda: agent.descendants() == [])
        assert time.monotonic() - lost_s >= 1.0
        assert "tainted" in (agent.states / "network.tfstate").read_text()
        await agent.until_logged(r"Failed \(OperatorLost\)")
        async with an_operator(agent) as late:
            final = await late.final_report()
        written = unseal(agent.termination_message, KEY, RUN_ID)
        assert written is not None
        assert written.result == final.result
    assert final.result is not None
    assert (final.result.outcome, final.result.reason) == (Outcome.FAILED, "OperatorLost")


async def test_a_run_whose_operator_stays_away_goes_on_otherwise(agent: AgentProcess, tmp_path: Path) -> None:
    async with an_operator(agent) as operator:
        code = f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.02; done"
        await operator.start({"main.tf": local_exec(code)})
        await agent.until_logged(r"\(local-exec\): begun")
    await agent.until_logged("disconnected")
    (tmp_path / "go").touch()
    await agent.until_logged(r"Succeeded \(Applied\)")


async def test_an_operator_that_does_not_read_is_no_burden(agent: AgentProcess) -> None:
    async with an_operator(agent) as deaf, an_operator(agent) as operator:
        connection = deaf.socket._conn
        assert connection is not None
        assert connection.transport is not None
        connection.transport.pause_reading()
        await operator.start({"main.tf": ""})
        for _ in range(300):
            await deaf.start({"main.tf": ""})
        await operator.result()
        await operator.ack()
        assert await agent.ended(10) == 0
        connection.transport.resume_reading()


async def test_health_and_readiness_are_told_in_plain_http(agent: AgentProcess) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("healthz", "readyz"):
            async with session.get(f"http://127.0.0.1:{agent.health_port}/{path}") as response:
                assert (response.status, await response.text()) == (200, "ok\n")


async def scraped(agent: AgentProcess) -> dict[str, float]:
    """Metric -> value; none has a label that tells two values apart."""
    url = f"http://127.0.0.1:{agent.health_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        families = text_string_to_metric_families(await response.text())
    return {sample.name: sample.value for family in families for sample in family.samples}


async def test_prometheus_reads_at_the_same_port_whether_a_run_is_alive(
    agent: AgentProcess, operator: Operator, tmp_path: Path
) -> None:
    assert (await scraped(agent))["terrahalt_agent_run_alive"] == 0
    await operator.start({"main.tf": local_exec(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done")})
    await operator.until_step(Step.APPLY)
    found = await scraped(agent)
    assert (found["terrahalt_agent_run_alive"], agent.descendants() != []) == (1, True)
    assert 0 < found["terrahalt_agent_disk_used_ratio"] < 1
    (tmp_path / "go").touch()
    await operator.result()
    assert ((await scraped(agent))["terrahalt_agent_run_alive"], agent.descendants()) == (0, [])


async def test_it_is_ready_soon_after_its_start(tmp_path: Path, authority: Authority) -> None:
    took_s = []
    for _ in range(3):
        begun_s = time.monotonic()
        async with an_agent(tmp_path, authority):
            took_s.append(time.monotonic() - begun_s)
        await asyncio.sleep(0)
    assert min(took_s) < 6.0  # 0.35 s on a quiet machine


@pytest.mark.parametrize("missing", ["TERRAHALT_OPERATOR_CA", "TERRAHALT_POD_UID"])
async def test_a_pod_that_the_operator_did_not_make_is_told_what_is_missing(
    tmp_path: Path, authority: Authority, missing: str
) -> None:
    with pytest.raises(AssertionError, match=f"{missing} is not set"):
        async with an_agent(tmp_path, authority, **{missing: ""}):
            pass
