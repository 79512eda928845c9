"""The in-run floor: what one loopback WebSocket frame and one kill(2) cost on this machine, right now.

No cancel that goes through a socket and a signal can be quicker. Other parts take a sample of it in each of
their rounds, so that it has seen the same load. Called by `__main__`, `cancel` and `start`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.bench import PROJECT
from tests.bench.figures import Part

ROUNDS = 200
_PAUSE_S = 0.005
_START_S = 20.0


@dataclass(slots=True)
class Floor:
    """One connection to the peer."""

    socket: aiohttp.ClientWebSocketResponse
    frames_ms: list[float]
    kills_ms: list[float]
    totals_ms: list[float]

    async def sample(self) -> None:
        """One frame and the signal that it causes; the first one of a connection is dear."""
        sent = time.monotonic()
        await self.socket.send_str("cancel")
        received, signalled = await self.socket.receive_json()
        self.frames_ms.append((received - sent) * 1000)
        self.kills_ms.append((signalled - received) * 1000)
        self.totals_ms.append((signalled - sent) * 1000)


@asynccontextmanager
async def a_floor() -> AsyncIterator[Floor]:
    """Warmed up, without samples. The peer ends with it."""
    peer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.floor_peer",
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
        start_new_session=True,
    )
    assert peer.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            port = int(await peer.stdout.readline())
        url = f"ws://127.0.0.1:{port}/"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=0) as socket:
            floor = Floor(socket, [], [], [])
            for _ in range(20):
                await floor.sample()
            yield Floor(socket, [], [], [])
    finally:
        if peer.returncode is None:
            peer.terminate()
        await peer.wait()


async def measure(rounds: int = ROUNDS) -> Part:
    part = Part("floor", "a loopback WebSocket frame, then kill(2) -> seen in another process")
    async with a_floor() as floor:
        for _ in range(rounds):
            await floor.sample()
            await asyncio.sleep(_PAUSE_S)
    part.add("frame sent -> received", "ms", floor.frames_ms)
    part.add("kill(2) -> seen by the process", "ms", floor.kills_ms)
    part.add("frame sent -> signal seen", "ms", floor.totals_ms)
    return part
