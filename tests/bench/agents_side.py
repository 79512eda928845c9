"""The far end of the sockets part: one process that stands for all agents, behind one port.

It has the agent's own TLS context, codec and socket settings, and says Hello as an agent does. Told what to
do by lines of JSON on its standard input, it answers each with one on its standard output; it ends with its
input. Run by `operator_side`. Its figures (memory above all) mean nothing: a thousand agents share it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from aiohttp import WSMsgType, web

from terrahalt_agent.adapters.trust import server_context
from terrahalt_protocol.codec import CommandDecoder
from terrahalt_protocol.messages import PROTOCOL_VERSION, Cancel, Hello
from tests.bench import machine
from tests.bench.payloads import frames_of, report_of

# As in terrahalt_agent.adapters.server, where they are private.
_HEARTBEAT_S = 20.0


class AgentsSide:
    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._sockets: list[web.WebSocketResponse] = []
        self._cancels: dict[str, float] = {}
        self._messages = 0
        self._came = asyncio.Condition()

    async def control(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=2 * self._max_frame_bytes)
        await socket.prepare(request)
        number = len(self._sockets)
        self._sockets.append(socket)
        hello = Hello(
            protocol_version=PROTOCOL_VERSION,
            agent_version="bench",
            namespace="bench",
            pod_name=f"agent-{number}",
            pod_uid=f"uid-{number}",
            boot_id=f"boot-{number}",
        )
        for frame in frames_of(hello, self._max_frame_bytes):
            await socket.send_str(frame)
        decoder = CommandDecoder()
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            command = decoder.feed(message.data)
            if command is None:
                continue
            if isinstance(command, Cancel):
                self._cancels[command.run_id] = time.monotonic()
            self._messages += 1
            async with self._came:
                self._came.notify_all()
        return socket

    async def obey(self, order: dict[str, Any]) -> Any:
        match order["do"]:
            case "await":
                async with self._came:
                    await self._came.wait_for(lambda: self._messages >= order["messages"])
                self._messages = 0
                received, self._cancels = self._cancels, {}
                return received
            case "report":
                frames = frames_of(report_of(order["bytes"]), self._max_frame_bytes)
                for socket in self._sockets:
                    for frame in frames:
                        await socket.send_str(frame)
                return len(frames)
            case unknown:
                raise ValueError(f"the agents' side can't {unknown}")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = json.loads(await orders.readline())
    machine.allow_open_files(settings["sockets"] + 200)
    side = AgentsSide(settings["max_frame_bytes"])
    application = web.Application()
    application.router.add_get("/control", side.control)
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = server_context(settings["ca"], "bench") if settings["ca"] else None
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, backlog=1024).start()
    print(json.dumps(runner.addresses[0][1]), flush=True)
    while line := await orders.readline():
        print(json.dumps(await side.obey(json.loads(line))), flush=True)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve())  # the loop that the agent runs on
