"""Whom the operator talks to, on real sockets: one that answers at an agent's address with any key it likes."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web

from terrahalt_agent.adapters.trust import server_context
from terrahalt_operator.adapters import agents as module
from terrahalt_operator.adapters.agents import Agents
from terrahalt_operator.adapters.trust import Trust, fingerprint, new_ca
from terrahalt_operator.core.model import Session
from terrahalt_operator.errors import Deposed
from terrahalt_protocol.codec import encode
from terrahalt_protocol.messages import (
    Ack,
    Cancel,
    CancelReason,
    CredentialsRefreshed,
    Hello,
    Leave,
    RefreshCredentials,
    Report,
)
from tests.operator_core import builders as b

CA, CA_KEY = new_ca(time.time())


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNTRUSTED_BACKOFF_S", 0.0)


class Pretender:
    """Whatever answers at the pod's address: says Hello with the token that it has, and counts its callers."""

    def __init__(self, token: str = "good", pod_uid: str = b.POD_UID) -> None:
        self.hello = msgspec.structs.replace(b.a_session().hello, identity_token=token, pod_uid=pod_uid)
        self.heard: list[str] = []
        self.calls = 0
        self.called = asyncio.Condition()
        self.sockets: list[web.WebSocketResponse] = []

    async def answer(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        for frame in encode(self.hello):
            await socket.send_str(frame)
        async with self.called:
            self.calls += 1
            self.called.notify_all()
        async for message in socket:
            async with self.called:
                self.heard.append(message.data)
                self.called.notify_all()
        return socket

    async def has_heard(self, messages: int) -> None:
        """So many by now, and not one more."""
        async with asyncio.timeout(10), self.called:
            await self.called.wait_for(lambda: len(self.heard) >= messages)
        assert len(self.heard) == messages

    async def was_called(self, times: int) -> None:
        async with asyncio.timeout(10), self.called:
            await self.called.wait_for(lambda: self.calls >= times)

    async def say(self, message: CredentialsRefreshed | Hello | Report) -> None:
        for frame in encode(message):
            await self.sockets[-1].send_str(frame)

    async def hang_up(self) -> None:
        for socket in self.sockets:
            await socket.close()

    @asynccontextmanager
    async def at_its_address(
        self, monkeypatch: pytest.MonkeyPatch, context: ssl.SSLContext | None = None, ip: str = "127.0.0.1"
    ) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get("/control", self.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, ip, 0, ssl_context=context or server_context(CA.decode(), "pod"))
        await site.start()
        monkeypatch.setattr(module, "CONTROL_PORT", runner.addresses[0][1])
        try:
            yield
        finally:
            await runner.cleanup()


class Reviewer:
    """The API server: the token `good` is of the pod that is dialled."""

    def __init__(self) -> None:
        self.reviewed: list[str] = []

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        self.reviewed.append(token)
        uid = b.POD_UID if token == "good" else "another"
        extra = {"authentication.kubernetes.io/pod-uid": [uid]}
        return {"authenticated": True, "audiences": [audience], "user": {"extra": extra}}


class Dialled:
    """An operator that keeps one agent; `connected` is whether it trusts what answers."""

    def __init__(
        self, agents: Agents, reviewer: Reviewer, changes: asyncio.Queue[str], reports: asyncio.Queue[str]
    ) -> None:
        self.agents, self.reviewer, self.changes, self.reports = agents, reviewer, changes, reports

    @property
    def connected(self) -> bool:
        return self.agents.session(b.POD_UID) is not None

    async def until_connected(self) -> str:
        async with asyncio.timeout(10):
            while not self.connected:
                await self.changes.get()
        session = self.agents.session(b.POD_UID)
        assert session is not None
        return session.fingerprint

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looks again with each change."""
        async with asyncio.timeout(10):
            while not condition():
                await self.changes.get()

    async def until_session(self, holds: Callable[[Session], bool]) -> None:
        await self.until(lambda: (session := self.agents.session(b.POD_UID)) is not None and holds(session))

    async def until_disconnected(self) -> None:
        async with asyncio.timeout(10):
            while self.connected:
                await self.changes.get()


@asynccontextmanager
async def dialling(
    pinned: Callable[[], str] = lambda: "",
    check: Callable[[], None] = lambda: None,
    had_run: Callable[[], bool] = lambda: False,
    ip: str = "127.0.0.1",
) -> AsyncIterator[Dialled]:
    reviewer, changes, reports = Reviewer(), asyncio.Queue[str](), asyncio.Queue[str]()

    async def raise_above(epoch: int) -> None:
        return

    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        agents = Agents(
            trust=Trust(CA, CA_KEY, b"secret", time.time),
            cluster=cast(Any, reviewer),
            leadership=cast(Any, SimpleNamespace(raise_above=raise_above, check=check)),
            http=http,
            spawn=group.create_task,
            clock=time.time,
            changed=changes.put_nowait,
            reported=reports.put_nowait,
            pinned=lambda uid: pinned(),
            had_run=lambda uid: had_run(),
            deposed=lambda why: None,
        )
        agents.keep(b.an_agent(ip=ip))
        try:
            yield Dialled(agents, reviewer, changes, reports)
        finally:
            agents.drop(b.POD_UID)


async def test_an_agent_without_a_claim_proves_itself_by_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    pretender = Pretender()
    async with pretender.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        assert operator.reviewer.reviewed == ["good"]


async def test_an_agent_is_reached_at_an_ipv6_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretender = Pretender()
    async with pretender.at_its_address(monkeypatch, ip="::1"), dialling(ip="::1") as operator:
        await operator.until_connected()


@pytest.mark.parametrize("token", ["", "stolen"])
async def test_without_its_own_token_it_is_told_nothing(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    pretender = Pretender(token)
    async with pretender.at_its_address(monkeypatch), dialling() as operator:
        await pretender.was_called(3)
        assert not operator.connected
        assert pretender.heard == []


async def test_one_that_says_it_is_another_pod_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretender = Pretender(pod_uid="another")
    async with pretender.at_its_address(monkeypatch), dialling() as operator:
        await pretender.was_called(2)
        assert (operator.connected, operator.reviewer.reviewed) == (False, [])


async def test_why_nobody_can_speak_to_it_is_known_until_somebody_can(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, thief, stolen = Pretender(), Pretender(), True
    monkeypatch.setattr(module, "CONTROL_PORT", 1)
    async with dialling(lambda: "sha256:of-the-agent" if stolen else "") as operator:
        await operator.until(lambda: "Connect call failed" in operator.agents.unreached(b.POD_UID))
        assert "0x" not in operator.agents.unreached(b.POD_UID), "it would be another text with each operator"
        async with thief.at_its_address(monkeypatch):
            await operator.until(lambda: "answers with key" in operator.agents.unreached(b.POD_UID))
        stolen = False
        async with agent.at_its_address(monkeypatch):
            await operator.until_connected()
            assert operator.agents.unreached(b.POD_UID) == ""


async def test_an_agent_with_a_claim_is_known_by_its_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's code in the pod can read the token, and so prove the pod; it can't have the agent's key."""
    pretender = Pretender()
    async with pretender.at_its_address(monkeypatch), dialling(lambda: "sha256:of-the-agent") as operator:
        await pretender.was_called(2)
        assert (operator.connected, operator.reviewer.reviewed) == (False, [])


async def test_another_key_at_the_address_of_a_proven_agent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, pretender = Pretender(), Pretender()
    async with dialling() as operator:
        async with agent.at_its_address(monkeypatch):
            await operator.until_connected()
        await operator.until_disconnected()
        async with pretender.at_its_address(monkeypatch):
            await pretender.was_called(2)
            assert not operator.connected
            assert operator.reviewer.reviewed == ["good"]


async def test_the_same_agent_is_found_again_and_a_claim_pins_the_key_that_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, pinned = Pretender(), [""]
    async with agent.at_its_address(monkeypatch), dialling(lambda: pinned[0]) as operator:
        pinned[0] = await operator.until_connected()
        await agent.hang_up()
        await operator.until_disconnected()
        assert await operator.until_connected() == pinned[0]
        assert operator.reviewer.reviewed == ["good"]


async def test_an_agent_that_had_a_run_before_its_key_was_known_takes_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever answers there may be the user code of that run: it can read the pod's token."""
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling(had_run=lambda: True) as operator:
        await operator.until_connected()
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.mismatch, session.is_usable) == ("its key was not known before its first run", False)


async def test_the_claim_of_an_agent_that_is_connected_already_makes_its_key_known_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator that leads no more may have reserved the agent, and claimed it for a run, that moment."""
    agent, pinned = Pretender(), [""]
    async with agent.at_its_address(monkeypatch), dialling(lambda: pinned[0], had_run=lambda: True) as operator:

        def mismatch() -> str | None:
            session = operator.agents.session(b.POD_UID)
            assert session is not None
            return session.mismatch

        key = await operator.until_connected()
        pinned[0] = "sha256:another"
        assert mismatch() == "its key was not known before its first run"
        pinned[0] = key
        assert mismatch() is None
        pinned[0] = ""
        assert mismatch() is None


async def test_a_key_that_a_claim_has_pinned_is_still_known_when_its_run_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = server_context(CA.decode(), "pod")
    agent, pinned = Pretender(), [""]
    async with agent.at_its_address(monkeypatch, context), dialling() as before:
        pinned[0] = await before.until_connected()
    async with (
        agent.at_its_address(monkeypatch, context),
        dialling(lambda: pinned[0], had_run=lambda: True) as operator,
    ):
        await operator.until_connected()
        pinned[0] = ""
        await agent.hang_up()
        await operator.until_disconnected()
        await operator.until_connected()
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.mismatch, operator.reviewer.reviewed) == (None, [])


async def test_a_start_that_was_decided_before_its_cancel_went_out_is_not_sent_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent would not run it, and stay as fresh as it is, which nobody here would know."""
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        await operator.agents.send(b.POD_UID, b.a_cancel())
        await operator.agents.send(b.POD_UID, b.a_start())
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.sent_start, session.is_used, session.is_usable) == ("", False, True)
        await operator.agents.send(b.POD_UID, msgspec.structs.replace(b.a_start(), run_id="the next one"))
        await agent.has_heard(2)
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.sent_start, session.is_used) == ("the next one", True)


async def test_a_run_that_has_only_come_further_changes_nothing_for_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        for sequence in (1, 2, 3):
            await agent.say(b.a_report(started_s=1.0, sequence=sequence).report)
        async with asyncio.timeout(10):
            assert [await operator.reports.get() for _ in range(2)] == [b.POD_UID] * 2
        received = operator.agents.report(b.POD_UID, b.RUN)
        assert received is not None
        assert received.report.sequence == 3
        assert operator.changes.qsize() == 1, "of the first, by which the agent has its run"


async def test_of_a_run_that_its_claim_tells_of_the_first_report_changes_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, pinned = Pretender(), [""]
    async with agent.at_its_address(monkeypatch), dialling(lambda: pinned[0]) as operator:
        pinned[0] = await operator.until_connected()
        await agent.say(b.a_report(started_s=1.0).report)
        async with asyncio.timeout(10):
            assert await operator.reports.get() == b.POD_UID
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.runs, session.is_used, operator.changes.qsize()) == (frozenset({b.RUN}), True, 0)


async def test_an_agent_that_says_hello_again_has_nothing_of_its_last_run(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        await operator.agents.send(b.POD_UID, b.a_start())
        report = b.a_final_report().report
        await agent.say(report)
        await operator.until(lambda: operator.agents.report(b.POD_UID, b.RUN) is not None)
        await operator.agents.send(b.POD_UID, b.an_ack)
        session = operator.agents.session(b.POD_UID)
        assert session is not None
        assert (session.is_usable, session.runs) == (False, frozenset())

        await agent.say(agent.hello)

        def is_usable() -> bool:
            now = operator.agents.session(b.POD_UID)
            return now is not None and now.is_usable

        await operator.until(is_usable)
        after = operator.agents.session(b.POD_UID)
        assert after is not None
        assert (after.sent_start, after.since > session.since) == ("", True)
        assert operator.agents.report(b.POD_UID, b.RUN) is None
        await agent.say(msgspec.structs.replace(agent.hello, boot_id="another"))
        await operator.until(lambda: agent.calls == 2)


async def test_the_end_that_an_agent_has_told_is_known_of_that_run_until_it_is_on_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        known = operator.agents.report
        await operator.until_connected()
        end = b.a_final_report().report
        await agent.say(end)
        await operator.until(lambda: known(b.POD_UID, b.RUN) is not None)
        await agent.say(msgspec.structs.replace(b.a_report().report, run_id="next"))
        await operator.until(lambda: known(b.POD_UID, "next") is not None)
        operator.agents.drop(b.POD_UID)
        kept = known(b.POD_UID, b.RUN)
        assert kept is not None
        assert kept.report == end
        assert known(b.POD_UID, "next") is None
        assert known("another", b.RUN) is None
        operator.agents.forget_end(b.POD_UID)
        assert known(b.POD_UID, b.RUN) is None


async def test_a_deposed_operator_commands_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretender, leads = Pretender(), [True]

    def check() -> None:
        if not leads:
            raise Deposed("not any more")

    ack = Ack(epoch=1, run_id="run-1")
    async with pretender.at_its_address(monkeypatch), dialling(check=check) as operator:
        await operator.until_connected()
        await operator.agents.send(b.POD_UID, ack)
        await pretender.has_heard(1)
        leads.clear()
        with pytest.raises(Deposed):
            await operator.agents.send(b.POD_UID, ack)
        leads.append(True)
        await operator.agents.send(b.POD_UID, ack)
        await pretender.has_heard(2)


async def test_an_operator_that_ends_dials_no_agent_that_it_hears_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    pretender = Pretender()
    # Who dials would go on for ever, and `dialling` waits for all that was begun.
    async with asyncio.timeout(10), pretender.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        operator.agents.close()
        assert not operator.connected
        operator.agents.keep(b.an_agent(uid="a-late-one", ip="127.0.0.1"))
    assert pretender.calls == 1


async def test_a_frame_of_a_gigabyte_is_refused_at_its_first_bytes_and_the_agent_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        writer = agent.sockets[0]._writer
        assert writer is not None
        writer.transport.write(bytes([0x81, 127]) + (1024**3).to_bytes(8, "big") + b"x")
        await operator.until_disconnected()
        await agent.was_called(2)
        await operator.until_connected()


async def test_what_an_agent_says_of_a_refresh_is_known_until_it_is_asked_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    agent.hello = msgspec.structs.replace(agent.hello, refreshed="r0")
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_session(lambda s: s.refreshed == "r0" and not s.sent_refresh)
        await operator.agents.send(b.POD_UID, RefreshCredentials(epoch=1, refresh="r1"))
        await agent.has_heard(1)
        await agent.say(CredentialsRefreshed(refresh="r1", problem="Secret aws was not found"))
        await operator.until_session(lambda s: s.refresh_problem == "Secret aws was not found")
        await agent.say(CredentialsRefreshed(refresh="r1"))
        await operator.until_session(lambda s: s.refreshed == "r1" and not s.refresh_problem)
        await operator.agents.send(b.POD_UID, RefreshCredentials(epoch=1, refresh="r2"))
        await agent.say(CredentialsRefreshed(refresh="r1", problem="of another time"))
        await agent.say(CredentialsRefreshed(refresh="r2"))
        await operator.until_session(lambda s: (s.refreshed, s.refresh_problem) == ("r2", ""))


async def test_that_an_agent_was_told_to_leave_is_known_for_as_long_as_it_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_session(lambda s: not s.sent_leave)
        await operator.agents.send(b.POD_UID, Leave(epoch=1))
        await operator.until_session(lambda s: s.sent_leave)
        await agent.has_heard(1)
        await agent.hang_up()
        await operator.until_session(lambda s: not s.sent_leave)


async def test_a_cancel_is_awaited_by_an_agent_that_was_sent_none_and_has_not_told_the_end_of_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        assert not operator.agents.awaits_cancel(b.POD_UID)
        await operator.until_connected()
        await agent.say(b.a_report().report)
        await operator.until_session(lambda s: bool(s.runs))
        assert operator.agents.awaits_cancel(b.POD_UID)
        await operator.agents.send(b.POD_UID, Cancel(epoch=1, run_id=b.RUN, reason=CancelReason.USER))
        assert not operator.agents.awaits_cancel(b.POD_UID)
        await agent.hang_up()
        await operator.until_session(lambda s: s.sent_cancel is None)
        assert operator.agents.awaits_cancel(b.POD_UID)
        await agent.say(b.a_final_report().report)
        await operator.until_session(lambda s: bool(s.runs))
        assert not operator.agents.awaits_cancel(b.POD_UID)


async def test_an_agent_that_says_hello_again_may_still_answer_the_refresh_that_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Pretender()
    agent.hello = msgspec.structs.replace(agent.hello, refreshed="")
    async with agent.at_its_address(monkeypatch), dialling() as operator:
        await operator.until_connected()
        await operator.agents.send(b.POD_UID, RefreshCredentials(epoch=1, refresh="r2"))
        await agent.say(msgspec.structs.replace(agent.hello, refreshed="r1"))
        await operator.until_session(lambda s: (s.refreshed, s.sent_refresh) == ("r1", "r2"))
        await agent.say(CredentialsRefreshed(refresh="r2"))
        await operator.until_session(lambda s: s.refreshed == "r2")


def test_a_fingerprint_is_of_the_whole_certificate() -> None:
    assert fingerprint(b"x") == "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


class Silent:
    """In the place of the network: nobody answers."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[aiohttp.ClientWebSocketResponse]] = []
        self.called = asyncio.Condition()

    async def ws_connect(self, *_: Any, **__: Any) -> aiohttp.ClientWebSocketResponse:
        answer: asyncio.Future[aiohttp.ClientWebSocketResponse] = asyncio.get_running_loop().create_future()
        async with self.called:
            self.calls.append(answer)
            self.called.notify_all()
        return await answer

    async def has(self, calls: int) -> None:
        async with asyncio.timeout(10), self.called:
            await self.called.wait_for(lambda: len(self.calls) >= calls)


@asynccontextmanager
async def dialling_many(count: int) -> AsyncIterator[Silent]:
    unused = cast(Any, None)
    silent = Silent()
    agents = Agents(
        trust=cast(Any, SimpleNamespace(tls=None)),
        cluster=unused,
        leadership=unused,
        http=cast(Any, silent),
        spawn=asyncio.get_running_loop().create_task,
        clock=time.time,
        changed=lambda uid: None,
        reported=lambda uid: None,
        pinned=lambda uid: "",
        had_run=lambda uid: False,
        deposed=unused,
    )
    for number in range(count):
        agents.keep(b.an_agent(uid=f"pod-{number}"))
    yield silent
    agents.close()


async def test_of_a_thousand_agents_a_few_at_a_time_shake_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_TURN_S", 3600.0)
    async with dialling_many(1000) as silent:
        await silent.has(module.DIALS_AT_ONCE)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(silent.calls) == module.DIALS_AT_ONCE
        silent.calls[0].set_exception(ConnectionRefusedError())
        await silent.has(module.DIALS_AT_ONCE + 1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(silent.calls) == module.DIALS_AT_ONCE + 1


async def test_agents_that_do_not_answer_keep_no_other_from_being_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_TURN_S", 0.001)
    async with dialling_many(100) as silent:
        await silent.has(100)
        assert not any(call.done() for call in silent.calls)
