"""The operator's certificate is renewed again and again while a run goes on, as it really is twice a day.

The operator's own sockets and keys (`adapters.agents`, `adapters.trust`) at one end, a real agent with a real run at
the other. `make soak-certificates` does it for as long as it is told, once a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from terrahalt_operator.adapters import agents as agents_module
from terrahalt_operator.adapters import trust as trust_module
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.trust import Trust, new_ca
from terrahalt_protocol.messages import Outcome, Result
from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.harness import PATIENCE_S, RUN_ID, AgentProcess, a_start, an_agent, running
from tests.agent_terraform.modules import local_exec
from tests.operator_core import builders as b
from tests.operator_core.test_agents import Reviewer

pytestmark = pytest.mark.terraform

SHORT = 2.0, 6
"""Seconds between two certificates, and how many there are."""


@pytest.fixture
def rotations(request: pytest.FixtureRequest) -> tuple[float, int]:
    minutes = request.config.getoption("--rotation-minutes")
    return SHORT if minutes is None else (60.0, int(minutes))


class Dialler:
    """An operator's connection to the one agent."""

    def __init__(self, trust: Trust, http: aiohttp.ClientSession, group: asyncio.TaskGroup) -> None:
        self.lost = 0
        self._changed = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()
        self.agents = Agents(
            trust=trust,
            cluster=cast(Any, Reviewer()),
            leadership=cast(Any, SimpleNamespace(raise_above=self._raise_above, check=lambda: None)),
            http=http,
            spawn=group.create_task,
            clock=time.time,
            changed=self._note,
            reported=self._note,
            pinned=lambda uid: "",
            had_run=lambda _: False,
            deposed=lambda why: None,
        )

    async def _raise_above(self, epoch: int) -> None:
        return

    def _note(self, pod_uid: str) -> None:
        self.lost += self.agents.session(pod_uid) is None
        notice = asyncio.create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
        async with asyncio.timeout(within_s), self._changed:
            return await self._changed.wait_for(condition)

    async def connect(self) -> None:
        self.agents.keep(b.an_agent(ip="127.0.0.1"))
        await self.until(lambda: self.agents.session(b.POD_UID))

    async def dial_again(self) -> None:
        self.agents.drop(b.POD_UID)
        await self.connect()

    def result(self) -> Result | None:
        received = self.agents.report(b.POD_UID, RUN_ID)
        return received.report.result if received else None


@asynccontextmanager
async def diallers(trust: Trust, count: int) -> AsyncIterator[list[Dialler]]:
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        made = [Dialler(trust, http, group) for _ in range(count)]
        try:
            yield made
        finally:
            for each in made:
                each.agents.drop(b.POD_UID)


async def is_refused(agent: AgentProcess, context: Any) -> bool:
    url = f"wss://127.0.0.1:{agent.control_port}/control"
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context) as socket:
            return (await socket.receive(timeout=10)).type is not aiohttp.WSMsgType.TEXT
    except (aiohttp.ClientError, ConnectionError):
        return True


async def test_a_run_and_who_listens_to_it_notice_nothing_of_the_operators_new_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotations: tuple[float, int]
) -> None:
    every_s, count = rotations
    monkeypatch.setattr(trust_module, "RENEWED_AFTER_S", every_s)
    monkeypatch.setattr(trust_module, "CLIENT_S", 2 * every_s)
    ca, key = new_ca(time.time())
    command = f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    authority = Authority(ca.decode(), tmp_path / "none")
    async with an_agent(tmp_path, authority, TERRAHALT_POD_UID=b.POD_UID) as agent:
        (tmp_path / "token").write_text("good")  # as its reviewer knows it
        monkeypatch.setattr(agents_module, "CONTROL_PORT", agent.control_port)
        trust = Trust(ca, key, b"secret", time.time)
        async with diallers(trust, 2) as (steady, restless):
            await steady.connect()
            await steady.agents.send(b.POD_UID, a_start({"main.tf": local_exec(command)}, timeout_s=7200))
            await agent.until_logged(r"\(local-exec\): begun")
            at_work = running(f"until [ -e {tmp_path}/go ]")

            first, seen = trust.tls, {id(trust.tls)}
            kept = [first]  # so that no later one gets its id
            for _ in range(count):
                await asyncio.sleep(every_s)
                await restless.dial_again()
                kept.append(trust.tls)
                seen.add(id(trust.tls))
            assert len(seen) == count + 1, "it was not renewed each time"
            assert await is_refused(agent, first), "the first certificate is still good, so nothing was tried"

            assert steady.lost == 0
            # The very shell: it is two for a moment, when it begins its next sleep, and is the elder.
            assert min(at_work) == min(running(f"until [ -e {tmp_path}/go ]"))
            (tmp_path / "go").touch()
            for each in (steady, restless):
                result = await each.until(each.result)
                assert result.outcome is Outcome.SUCCEEDED
    assert agent.log.count(" connected") == 1 + count
