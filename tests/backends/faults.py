"""A proxy before a backend that hangs, cuts, delays or refuses what terraform asks of it, verb by verb.

The verbs are those of terraform's http backend, GET, LOCK, POST and UNLOCK; a backend says which one a request is.
A fault holds from the call that sets it until `mend`, and what hung then goes on its way to the backend, be its
sender alive or not. Used by the tests of the agent with a real terraform.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from io import BytesIO

import aiohttp
from aiohttp import web
from yarl import URL

GET, LOCK, POST, UNLOCK = "GET", "LOCK", "POST", "UNLOCK"
_HOPS = frozenset({"connection", "expect", "keep-alive", "transfer-encoding", "content-length"})
_CHUNK_BYTES = 65536


class Fault(Enum):
    HANG = auto()
    CUT = auto()
    REFUSE = auto()
    """Status 500; of a proxy that knows no HTTP the same as CUT."""


class Faults:
    """What goes wrong from now on."""

    def __init__(self) -> None:
        self.delay_s: dict[str, float] = defaultdict(float)
        self._faults: dict[str, Fault] = {}
        self._met: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._asked: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._mended: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def fail(self, verb: str, fault: Fault) -> None:
        self._faults[verb] = fault
        self._mended[verb].clear()

    def mend(self, *verbs: str) -> None:
        """Without any: all of them."""
        for verb in verbs or tuple(self._faults):
            self._faults.pop(verb, None)
            self._mended[verb].set()

    async def until_met(self, verb: str, within_s: float = 60.0) -> None:
        """A request of that verb has come while there was a fault for it."""
        async with asyncio.timeout(within_s):
            await self._met[verb].wait()

    async def until_asked(self, verb: str, within_s: float = 60.0) -> None:
        """The next request of that verb is here."""
        self._asked[verb].clear()
        async with asyncio.timeout(within_s):
            await self._asked[verb].wait()

    async def _meet(self, verb: str) -> Fault | None:
        self._asked[verb].set()
        await asyncio.sleep(self.delay_s[verb])
        fault = self._faults.get(verb)
        if fault is not None:
            self._met[verb].set()
        return fault


class HttpFaults(Faults):
    def __init__(self, upstream: str, verb_of: Callable[[str, str], str]) -> None:
        """`verb_of` is given the method and the path."""
        super().__init__()
        self.url = ""
        self._upstream = upstream
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._verb_of = verb_of
        self._session: aiohttp.ClientSession

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        # What was signed must arrive as it is.
        skipped = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
        async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=skipped) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield
            finally:
                self.mend()
                await runner.cleanup()

    async def until_idle(self) -> None:
        """What hung has reached the backend, whoever had sent it."""
        await self._idle.wait()

    async def _answer(self, request: web.Request) -> web.Response:
        self._under_way += 1
        self._idle.clear()
        try:
            return await self._pass(request)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _pass(self, request: web.Request) -> web.Response:
        body = await request.read()
        verb = self._verb_of(request.method, request.path)
        match await self._meet(verb):
            case Fault.HANG:
                await self._mended[verb].wait()
            case Fault.CUT:
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case Fault.REFUSE:
                return web.Response(status=500)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOPS}
        # aiohttp warns of large bytes.
        url = URL(self._upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, data=BytesIO(body) if body else None, headers=headers
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOPS}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())


class TcpFaults(Faults):
    def __init__(self, port: int, verb_of: Callable[[bytes], str]) -> None:
        """`verb_of` is given what the client sent last."""
        super().__init__()
        self.port = 0
        self._upstream_port = port
        self._verb_of = verb_of

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            pumps = [
                asyncio.create_task(self._pump(client, to_upstream, checked=True)),
                asyncio.create_task(self._pump(upstream, to_client, checked=False)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for writer in (to_client, to_upstream):
                writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, checked: bool) -> None:
        """Ends with the connection on either side: that a client is gone is told also while its request hangs."""
        while data := await reader.read(_CHUNK_BYTES):
            verb = self._verb_of(data)
            match await self._meet(verb) if checked else None:
                case Fault.HANG:
                    mended = asyncio.create_task(self._mended[verb].wait())
                    gone = asyncio.create_task(reader.read(1))
                    await asyncio.wait([mended, gone], return_when=asyncio.FIRST_COMPLETED)
                    mended.cancel()
                    if gone.done():
                        return
                    gone.cancel()
                case Fault.CUT | Fault.REFUSE:
                    return
            writer.write(data)
            await writer.drain()
