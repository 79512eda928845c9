"""The control socket (mutual TLS), and the port of health and metrics.

Frames in, messages out; what a message means is decided elsewhere. Each connection has a writer of its
own behind a bounded queue: an operator that does not read is cut off and dials again, and never holds
up another one or a run. Called by `app` and `driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import WSCloseCode, WSMsgType, web

from terrahalt_agent.adapters.doorway import Doorway
from terrahalt_agent.core.events import (
    AgentEvent,
    CommandMangled,
    CommandReceived,
    OperatorConnected,
    OperatorDisconnected,
)
from terrahalt_protocol.codec import MAX_FRAME_BYTES, CommandDecoder, ProtocolError, encode
from terrahalt_protocol.messages import FromAgent

_HEARTBEAT_S = 20.0
_MAX_WAITING_FRAMES = 512
_SHUTDOWN_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Connection:
    socket: web.WebSocketResponse
    transport: asyncio.Transport | None
    peer: str
    frames: asyncio.Queue[str] = field(default_factory=lambda: asyncio.Queue(_MAX_WAITING_FRAMES))
    is_greeted: bool = False
    """Hello was sent: an operator takes what is said before it for somebody else's words, and hangs up."""


class Server:
    def __init__(self, post: Callable[[AgentEvent], None], metrics: Callable[[], tuple[bytes, str]]) -> None:
        """`metrics`: the page and its content type."""
        self._post, self._page = post, metrics
        self._connections: dict[int, _Connection] = {}
        self._last_connection = 0
        self._runners: list[web.AppRunner] = []
        self._doorways: list[Doorway] = []
        self._is_ready = False

    async def listen(
        self, host: str | None, control_port: int, health_port: int, context: ssl.SSLContext
    ) -> tuple[int, int]:
        """The ports that it listens on: those asked for, or chosen ones for 0."""
        plain = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        health = await self._serve(plain, host, health_port, None)
        control = await self._serve({"/control": self._control}, host, control_port, context)
        self._is_ready = True
        return control, health

    async def close(self) -> None:
        self._is_ready = False
        connections = list(self._connections.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_S):
                for connection in connections:
                    await connection.frames.join()  # the farewell is out before the close
                for connection in connections:
                    await connection.socket.close(code=WSCloseCode.GOING_AWAY)
        for doorway in self._doorways:
            doorway.close()
        for runner in self._runners:
            await runner.cleanup()

    def send(self, connection_id: int, message: FromAgent) -> None:
        """Queues it; nothing where that operator is gone."""
        if (connection := self._connections.get(connection_id)) is None:
            return
        connection.is_greeted = True
        try:
            for frame in encode(message):
                connection.frames.put_nowait(frame)
        except asyncio.QueueFull:
            _log.warning("operator at %s does not read: its connection is closed", connection.peer)
            self._connections.pop(connection_id)
            if connection.transport is not None:
                connection.transport.abort()

    def send_to_all(self, message: FromAgent) -> None:
        for connection_id in [number for number, each in self._connections.items() if each.is_greeted]:
            self.send(connection_id, message)

    async def _serve(
        self,
        routes: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]],
        host: str | None,
        port: int,
        context: ssl.SSLContext | None,
    ) -> int:
        application = web.Application()
        for path, handler in routes.items():
            application.router.add_get(path, handler)
        runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        self._runners.append(runner)
        assert runner.server is not None
        doorway = Doorway(runner.server, context)
        self._doorways.append(doorway)
        return doorway.open(host, port)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # the event loop turns: that is what is asked

    async def _readyz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n" if self._is_ready else "starting\n", status=200 if self._is_ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        page, content_type = self._page()
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _control(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=2 * MAX_FRAME_BYTES)
        await socket.prepare(request)
        self._last_connection += 1
        connection_id = self._last_connection
        connection = _Connection(socket, request.transport, request.remote or "?")
        self._connections[connection_id] = connection
        _log.info("operator at %s connected", connection.peer)
        writer = asyncio.create_task(self._write(connection), name=f"control-writer-{connection_id}")
        try:
            self._post(OperatorConnected(connection_id))
            await self._read(connection_id, connection)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SHUTDOWN_S):
                    await connection.frames.join()  # the refusal is out before the close
        finally:
            self._connections.pop(connection_id, None)
            writer.cancel()
            self._post(OperatorDisconnected(connection_id))
            _log.info("operator at %s disconnected", connection.peer)
        return socket

    async def _read(self, connection_id: int, connection: _Connection) -> None:
        """Until the operator leaves, or sends what can't be read: then frames may be missing too."""
        decoder = CommandDecoder()
        async for frame in connection.socket:
            try:
                if frame.type is not WSMsgType.TEXT:
                    raise ProtocolError("this agent reads text frames only")
                command = decoder.feed(frame.data)
            except ProtocolError as error:
                self._post(CommandMangled(connection_id, str(error)))
                return
            if command is not None:
                self._post(CommandReceived(connection_id, command))

    @staticmethod
    async def _write(connection: _Connection) -> None:
        try:
            while True:
                await connection.socket.send_str(await connection.frames.get())
                connection.frames.task_done()
        except (ConnectionError, RuntimeError):
            return  # the reader of this connection sees its end too
