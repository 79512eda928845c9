"""The control sockets to the agents: dials each pod, proves who answers, keeps what it says.

One task per agent pod, for as long as the pod may have something to tell. Nothing is sent to, and
nothing believed from, what has not proven to be the dialled pod: by the fingerprint of its claim, or,
without a claim, by its identity token, and from then on by that very key. A token proves nothing of the key once
user code has run in the pod: such an agent takes no run. Lost connections are dialled
again for ever, because nothing else can reach a run. Called by `world` (whom to dial) and `effects`
(what to send); it calls back `changed` and `reported`, and decides nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.adapters.leadership import Leadership
from terrahalt_operator.adapters.trust import Trust, fingerprint, prove_pod
from terrahalt_operator.core.model import Agent, ReceivedReport, Session
from terrahalt_operator.core.pod import CONTROL_PORT
from terrahalt_operator.errors import AgentUntrusted, ClusterError
from terrahalt_protocol.codec import MAX_FRAME_BYTES, FromAgentDecoder, ProtocolError, encode, version_mismatch
from terrahalt_protocol.messages import (
    Ack,
    Cancel,
    Command,
    CredentialsRefreshed,
    FromAgent,
    Hello,
    Leave,
    RefreshCredentials,
    RefusalCode,
    Refused,
    Report,
    Start,
)

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 5.0
HEARTBEAT_S = 20.0
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
DIALS_AT_ONCE = 8
"""A handshake takes milliseconds of the loop: a thousand in a row would hold up the renewal of the leader's Lease."""
DIAL_TURN_S = 0.1
"""One that does not answer keeps others waiting for no longer."""
UNTRUSTED_BACKOFF_S = 10.0


@dataclass(slots=True)
class _Connection:
    socket: aiohttp.ClientWebSocketResponse
    hello: Hello
    fingerprint: str
    runs: set[str]
    is_used: bool
    since: float
    reports: dict[str, ReceivedReport] = field(default_factory=dict)
    sent_start: str = ""
    sent_cancel: Cancel | None = None
    refused: Refused | None = None
    refreshed: str | None = None
    sent_refresh: str = ""
    refresh_problem: str = ""
    sent_leave: bool = False

    def begin_anew(self, hello: Hello, now: float) -> None:
        """Nothing of its last run is left at the agent, so nothing is here either."""
        self.hello, self.runs, self.is_used, self.since = hello, set(hello.runs), hello.used, now
        self.refreshed = hello.refreshed  # what it was asked for over this connection it may still answer
        self.reports, self.sent_start, self.sent_cancel, self.refused = {}, "", None, None


class Agents:
    """What is connected now. `changed(pod_uid)` is called whenever an answer here changes, or `reported(pod_uid)` where
    only its claimed run has begun or come further: agents say that often, and no pool is any different for it."""

    def __init__(
        self,
        *,
        trust: Trust,
        cluster: Cluster,
        leadership: Leadership,
        http: aiohttp.ClientSession,
        spawn: Callable[..., asyncio.Task[None]],
        clock: Callable[[], float],
        changed: Callable[[str], None],
        reported: Callable[[str], None],
        pinned: Callable[[str], str],
        had_run: Callable[[str], bool],
        deposed: Callable[[str], None],
    ) -> None:
        self._trust, self._cluster, self._leadership, self._http = trust, cluster, leadership, http
        self._spawn, self._clock, self._changed, self._reported = spawn, clock, changed, reported
        self._pinned, self._had_run, self._deposed = pinned, had_run, deposed
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._connections: dict[str, _Connection] = {}
        self._proven: dict[str, str] = {}
        self._unreached: dict[str, str] = {}
        self._ends: dict[str, ReceivedReport] = {}
        """Pod -> the last end of a run that it told: true, whatever becomes of the connection and of the pod."""
        self._turns = asyncio.Semaphore(DIALS_AT_ONCE)
        self._is_closed = False

    def keep(self, agent: Agent) -> None:
        """Dials this pod until `drop`; does nothing where that is under way, or after `close`."""
        if agent.uid not in self._dialers and not self._is_closed:
            self._dialers[agent.uid] = self._spawn(self._dial(agent), name=f"agent {agent.name}")

    def drop(self, pod_uid: str) -> None:
        """The pod is over or gone: what it said is forgotten, but for the end of its run."""
        dialer = self._dialers.pop(pod_uid, None)
        if dialer:
            dialer.cancel()
        self._connections.pop(pod_uid, None)
        self._proven.pop(pod_uid, None)
        self._unreached.pop(pod_uid, None)

    def forget_end(self, pod_uid: str) -> None:
        """It is on record, or nobody's."""
        self._ends.pop(pod_uid, None)

    def close(self) -> None:
        """Drops all, for good: the watch may still bring a pod, and whoever dialled it would never end."""
        self._is_closed = True
        for uid in list(self._dialers):
            self.drop(uid)

    def session(self, pod_uid: str) -> Session | None:
        connection = self._connections.get(pod_uid)
        if connection is None:
            return None
        return Session(
            hello=connection.hello,
            fingerprint=connection.fingerprint,
            runs=frozenset(connection.runs),
            is_used=connection.is_used,
            sent_start=connection.sent_start,
            sent_cancel=connection.sent_cancel,
            refused=connection.refused,
            mismatch=version_mismatch(connection.hello) or self._doubt(pod_uid, connection),
            since=connection.since,
            refreshed=connection.refreshed,
            sent_refresh=connection.sent_refresh,
            refresh_problem=connection.refresh_problem,
            sent_leave=connection.sent_leave,
        )

    def _doubt(self, pod_uid: str, connection: _Connection) -> str | None:
        """The claim that names its key may be listed only when it has connected."""
        if self._pinned(pod_uid) == connection.fingerprint:
            self._proven[pod_uid] = connection.fingerprint
        if self._proven.get(pod_uid) == connection.fingerprint:
            return None
        return "its key was not known before its first run"

    def report(self, pod_uid: str, run_id: str) -> ReceivedReport | None:
        connection, end = self._connections.get(pod_uid), self._ends.get(pod_uid)
        received = connection.reports.get(run_id) if connection else None
        return end if received is None and end is not None and end.report.run_id == run_id else received

    def awaits_cancel(self, pod_uid: str) -> bool:
        """Whether it is connected, was sent none over this connection, and has not told the end of its run."""
        if (connection := self._connections.get(pod_uid)) is None or connection.sent_cancel is not None:
            return False
        return not any(received.report.result for received in connection.reports.values())

    def unreached(self, pod_uid: str) -> str:
        """Why the last try has failed; empty: none has, since it was connected."""
        return self._unreached.get(pod_uid, "")

    async def send(self, pod_uid: str, command: Command) -> None:
        """Sends if connected; else nothing: the next connection is decided upon anew. Raises Deposed."""
        self._leadership.check()
        connection = self._connections.get(pod_uid)
        if connection is None:
            return
        try:
            frames = encode(command)
        except ProtocolError as error:
            run_id = "" if isinstance(command, RefreshCredentials | Leave) else command.run_id
            connection.refused = Refused(code=RefusalCode.MALFORMED, message=str(error), run_id=run_id)
            self._changed(pod_uid)
            return
        match command:
            case Start(run_id=run_id) if connection.sent_cancel is not None and connection.sent_cancel.run_id == run_id:
                return  # its cancel went out since this was decided: the agent will not run it, and stays fresh
            case Start(run_id=run_id):
                connection.sent_start, connection.is_used = run_id, True
            case Cancel():
                connection.sent_cancel = command
            case Ack(run_id=run_id):
                connection.runs.discard(run_id)
            case RefreshCredentials(refresh=refresh):
                connection.sent_refresh, connection.refresh_problem = refresh, ""
            case Leave():
                connection.sent_leave = True
                log.warning("agent %s: its pod was deleted and it goes on: told to leave", connection.hello.pod_name)
        try:
            for frame in frames:
                await connection.socket.send_str(frame)
        except (ConnectionError, aiohttp.ClientError) as error:
            log.info("agent %s: connection lost while sending: %s", connection.hello.pod_name, error)

    async def _dial(self, agent: Agent) -> None:
        failures = 0
        while True:
            try:
                await self._converse(agent)
                failures = 0
            except AgentUntrusted as error:
                self._note_failure(agent, str(error))
                log.error("agent %s: refused: %s", agent.name, error)
                await asyncio.sleep(UNTRUSTED_BACKOFF_S)
            except (aiohttp.ClientError, aiohttp.WSMessageTypeError, ClusterError, ProtocolError, OSError) as error:
                # A pod that is still starting refuses connections; that is no news.
                self._note_failure(agent, _told(error))
                level = logging.DEBUG if failures < len(BACKOFF_S) else logging.INFO
                log.log(level, "agent %s: no connection: %s", agent.name, error or type(error).__name__)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _note_failure(self, agent: Agent, why: str) -> None:
        """For the pool's condition, so each text only once."""
        if self._unreached.get(agent.uid) != why:
            self._unreached[agent.uid] = why
            self._changed(agent.uid)

    async def _converse(self, agent: Agent) -> None:
        address = f"[{agent.ip}]" if ipaddress.ip_address(agent.ip).version == 6 else agent.ip
        async with self._turn(), asyncio.timeout(CONNECT_TIMEOUT_S):
            socket = await self._http.ws_connect(
                f"wss://{address}:{CONTROL_PORT}/control",
                ssl=self._trust.tls,
                heartbeat=HEARTBEAT_S,
                compress=0,
                max_msg_size=MAX_FRAME_BYTES + 1,  # aiohttp refuses a message of exactly this size
            )
        async with socket:
            decoder = FromAgentDecoder()
            connection = await self._prove(agent, socket, decoder)
            self._connections[agent.uid] = connection
            self._unreached.pop(agent.uid, None)
            log.info("agent %s: connected", agent.name)
            self._changed(agent.uid)
            try:
                async for frame in socket:
                    if frame.type is aiohttp.WSMsgType.TEXT:
                        self._receive(agent, connection, decoder.feed(frame.data))
            finally:
                if self._connections.get(agent.uid) is connection:
                    del self._connections[agent.uid]
                    log.info("agent %s: connection closed", agent.name)
                    self._changed(agent.uid)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of a few at a time, given on after a moment also where it is still under way."""
        await self._turns.acquire()
        is_held = True

        def pass_on() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._turns.release()

        timer = asyncio.get_running_loop().call_later(DIAL_TURN_S, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            pass_on()

    async def _prove(
        self, agent: Agent, socket: aiohttp.ClientWebSocketResponse, decoder: FromAgentDecoder
    ) -> _Connection:
        certificate = socket.get_extra_info("ssl_object").getpeercert(binary_form=True)
        seen = fingerprint(certificate)
        expected = self._pinned(agent.uid) or self._proven.get(agent.uid, "")
        if expected and seen != expected:
            raise AgentUntrusted(f"pod {agent.name} answers with key {seen}, its claim names {expected}")
        hello = None
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            while hello is None:
                hello = decoder.feed(await socket.receive_str())
        if not isinstance(hello, Hello):
            raise ProtocolError(f"agent {agent.name} began with {type(hello).__name__}, expected Hello")
        if hello.pod_uid != agent.uid:
            raise AgentUntrusted(f"pod {agent.name} says that it is pod {hello.pod_uid}, not {agent.uid}")
        if not expected:
            await prove_pod(self._cluster, hello.identity_token, agent.uid)
        if expected or not self._had_run(agent.uid):
            self._proven[agent.uid] = seen
        await self._leadership.raise_above(hello.highest_epoch)
        return _Connection(
            socket=socket,
            hello=hello,
            fingerprint=seen,
            runs=set(hello.runs),
            is_used=hello.used,
            since=self._clock(),
            refreshed=hello.refreshed,
        )

    def _receive(self, agent: Agent, connection: _Connection, message: FromAgent | None) -> None:
        match message:
            case Report(run_id=run_id):
                before = connection.reports.get(run_id)
                if message.boot_id != connection.hello.boot_id:
                    log.warning("agent %s: report of another boot ignored", agent.name)
                    return
                if before and before.report.sequence >= message.sequence:
                    return
                received = connection.reports[run_id] = ReceivedReport(report=message, received_at=self._clock())
                if message.result is not None:
                    self._ends[agent.uid] = received
                # A tombstone is not a run: the agent that holds it is as fresh as before.
                is_used = connection.is_used or message.started_s is not None
                is_no_news = run_id in connection.runs and connection.is_used is is_used
                connection.runs.add(run_id)
                connection.is_used = is_used
                if is_no_news or self._pinned(agent.uid):
                    self._reported(agent.uid)
                    return
            case Refused(code=RefusalCode.STALE_EPOCH):
                self._deposed(f"agent {agent.name}: {message.message}")
                return
            case Refused():
                log.error("agent %s: refused a command: %s", agent.name, message.message)
                connection.refused = message
            case CredentialsRefreshed(refresh=refresh, problem=problem):
                if refresh != connection.sent_refresh:
                    return
                connection.refresh_problem = problem
                if not problem:
                    connection.refreshed = refresh
            case Hello():
                if message.boot_id != connection.hello.boot_id:
                    raise ProtocolError(f"agent {agent.name} said Hello as another")
                connection.begin_anew(message, self._clock())
                self.forget_end(agent.uid)
            case None:
                return
        self._changed(agent.uid)


def _told(error: Exception) -> str:
    """For people, and the same for the same cause: aiohttp's own words name an object's address."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
