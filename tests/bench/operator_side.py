"""The operator's end of the sockets part, alone in its process so that its memory is its own.

It has the operator's TLS context, codec, socket and garbage collector settings. One run is one
combination of loop, TLS and frame size; it gets them as JSON in its argument and prints what it found as
JSON. Memory only grows here: the steps go from small to large, each on the sockets of the one before.
Run by `sockets`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any, cast

import aiohttp
import msgspec
import uvloop

from terrahalt_operator.adapters.agents import HEARTBEAT_S
from terrahalt_operator.adapters.cluster import Cluster, Json
from terrahalt_operator.adapters.trust import Trust
from terrahalt_operator.errors import NotFound
from terrahalt_protocol.codec import FromAgentDecoder, encode
from terrahalt_protocol.messages import Cancel, CancelReason, Command
from tests.bench import PROJECT, machine
from tests.bench.payloads import frames_of, start_of

DIALS_AT_ONCE = 50
SETTLE_S = 0.5
LARGE_BYTES = 60_000
SINGLE_CANCELS = 200
STEP_TIMEOUT_S = 60.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    sockets: int
    loop: str
    """`uvloop` or `asyncio`."""
    tls: bool
    max_frame_bytes: int
    idle_s: float
    """How long idle CPU is watched; 0: not at all. From 20 s on, every socket has its heartbeat in it."""
    bursts: int


class _NoClusterYet:
    """Lets `Trust` make itself as on its first start."""

    async def get(self, *_: str) -> Json:
        raise NotFound("nothing is here")

    async def create(self, _resource: object, _namespace: str, body: Json) -> Json:
        return body


class OperatorSide:
    def __init__(self, settings: Settings, agents: asyncio.subprocess.Process) -> None:
        self._settings, self._agents = settings, agents
        self._sockets: list[aiohttp.ClientWebSocketResponse] = []
        self._readers: list[asyncio.Task[None]] = []
        self._messages, self._came = 0, asyncio.Event()
        self._rss_before = 0
        self.found: dict[str, Any] = {"rss_kib": {}}

    async def tell(self, order: Any) -> Any:
        assert self._agents.stdin is not None
        assert self._agents.stdout is not None
        self._agents.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return json.loads(await self._agents.stdout.readline())

    async def run(self) -> None:
        trust = await Trust.load(cast(Cluster, _NoClusterYet()), "bench", time.time)
        port = await self.tell(
            {
                "ca": trust.ca_pem if self._settings.tls else "",
                "sockets": self._settings.sockets,
                "max_frame_bytes": self._settings.max_frame_bytes,
            }
        )
        url = f"ws{'s' if self._settings.tls else ''}://127.0.0.1:{port}/control"
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            await self._dial(http, url, trust)
            await self._watch_idle()
            await self._exchange()
            await self._cancel_one_by_one()
            await self._cancel_all()
            for reader in self._readers:
                reader.cancel()
            await asyncio.gather(*(socket.close() for socket in self._sockets))

    async def _dial(self, http: aiohttp.ClientSession, url: str, trust: Trust) -> None:
        gate = asyncio.Semaphore(DIALS_AT_ONCE)

        async def dial() -> None:
            async with gate:
                socket = await http.ws_connect(
                    url,
                    ssl=trust.tls if self._settings.tls else False,
                    heartbeat=HEARTBEAT_S,
                    compress=0,
                    max_msg_size=self._settings.max_frame_bytes,
                )
            self._sockets.append(socket)
            self._readers.append(asyncio.create_task(self._read(socket), name=f"reader {len(self._sockets)}"))

        await dial()  # what the first connection imports and allocates is not the price of one more
        await self._until(1)
        gc.collect()
        self._rss_before = machine.rss_bytes()
        cpu, began = time.process_time(), time.monotonic()
        async with asyncio.timeout(STEP_TIMEOUT_S), asyncio.TaskGroup() as group:
            for number in range(self._settings.sockets - 1):
                group.create_task(dial(), name=f"dial {number}")
        await self._until(self._settings.sockets - 1)
        self.found["dial_cpu_ms"] = (time.process_time() - cpu) * 1000 / len(self._sockets)
        self.found["dial_all_s"] = time.monotonic() - began
        await self._note_rss("idle")

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        decoder = FromAgentDecoder()
        async for frame in socket:
            if frame.type is aiohttp.WSMsgType.TEXT and decoder.feed(frame.data) is not None:
                self._messages += 1
                self._came.set()

    async def _until(self, messages: int) -> None:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            while self._messages < messages:
                self._came.clear()
                await self._came.wait()
        self._messages = 0

    async def _note_rss(self, step: str) -> None:
        await asyncio.sleep(SETTLE_S)
        grown = machine.rss_bytes() - self._rss_before
        self.found["rss_kib"][step] = grown / 1024 / max(1, len(self._sockets) - 1)
        self.found["rss_total_mib"] = machine.rss_bytes() / 2**20

    async def _watch_idle(self) -> None:
        if not self._settings.idle_s:
            return
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(self._settings.idle_s)
        self.found["idle_cpu_percent"] = 100 * (time.process_time() - cpu) / (time.monotonic() - began)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, command: Command) -> None:
        for frame in encode(command):
            await socket.send_str(frame)

    async def _exchange(self) -> None:
        # aiohttp refuses a message of exactly its max_msg_size: one byte less is the largest that fits.
        frame_bytes = min(16 * 1024, self._settings.max_frame_bytes) - 1
        for size, step in ((frame_bytes, "frame"), (LARGE_BYTES, "large")):
            frames = frames_of(start_of(size), self._settings.max_frame_bytes)
            for socket in self._sockets:
                for frame in frames:
                    await socket.send_str(frame)
            await self.tell({"do": "await", "messages": len(self._sockets)})
            await self._note_rss(f"{step} sent")
            await self.tell({"do": "report", "bytes": size})
            await self._until(len(self._sockets))
            await self._note_rss(f"{step} received")

    async def _cancel_one_by_one(self) -> None:
        taken = []
        for number in range(min(SINGLE_CANCELS, len(self._sockets))):
            sent = time.monotonic()
            await self._send(self._sockets[number], a_cancel("one"))
            received = await self.tell({"do": "await", "messages": 1})
            taken.append((received["one"] - sent) * 1000)
        self.found["one_cancel_ms"] = taken

    async def _cancel_all(self) -> None:
        since_asked, since_sent = [], []
        for _ in range(self._settings.bursts):
            sent = {}
            asked = time.monotonic()
            for number, socket in enumerate(self._sockets):
                sent[str(number)] = time.monotonic()
                await self._send(socket, a_cancel(str(number)))
            received = await self.tell({"do": "await", "messages": len(self._sockets)})
            since_asked += [(received[name] - asked) * 1000 for name in sent]
            since_sent += [(received[name] - sent[name]) * 1000 for name in sent]
        self.found |= {"burst_ms": since_asked, "burst_own_frame_ms": since_sent}


def a_cancel(run_id: str) -> Cancel:
    return Cancel(epoch=1, run_id=run_id, reason=CancelReason.USER, report_key="0" * 64)


async def _run(settings: Settings) -> dict[str, Any]:
    machine.allow_open_files(settings.sockets + 200)
    agents = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.agents_side"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
        limit=2**24,
    )
    side = OperatorSide(settings, agents)
    try:
        await side.run()
    finally:
        if agents.returncode is None:
            agents.kill()
        await agents.wait()
    return side.found


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as the operator does
    run = uvloop.run if settings.loop == "uvloop" else asyncio.run
    print(json.dumps(run(_run(settings))))


if __name__ == "__main__":
    main()
