"""A server for terraform's http backend, in memory: one state, one lock, as GitLab and others do it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import BasicAuth, web

from tests.backends.faults import HttpFaults

_MAX_STATE_BYTES = 1 << 26
PASSWORD = 'the-password-${of}-the-"state"'


def verb_of(method: str, _path: str) -> str:
    return method


class HttpState:
    def __init__(self) -> None:
        self.content: bytes | None = None
        self.lock: dict[str, Any] | None = None
        self.faults: HttpFaults

    @property
    def resources(self) -> list[str]:
        return resources_of(self.content)

    @property
    def secret_config(self) -> dict[str, str]:
        return {"username": "terrahalt", "password": PASSWORD}

    @property
    def config(self) -> dict[str, Any]:
        address = f"{self.faults.url}/state"
        return {"address": address, "lock_address": address, "unlock_address": address, "retry_max": 0}

    async def answer(self, request: web.Request) -> web.Response:
        if BasicAuth.decode(request.headers.get("Authorization", "Basic Og==")).password != PASSWORD:
            return web.Response(status=401)
        body = await request.read()
        match request.method:
            case "GET":
                return web.Response(status=404) if self.content is None else web.Response(body=self.content)
            case "POST":
                if self.lock is not None and request.query.get("ID") != self.lock["ID"]:
                    return web.json_response(self.lock, status=409)
                self.content = body
            case "LOCK":
                if self.lock is not None:
                    return web.json_response(self.lock, status=423)
                self.lock = json.loads(body)
            case "UNLOCK":
                # force-unlock sends none: it removes whatever lock there is.
                if body and self.lock is not None and json.loads(body)["ID"] != self.lock["ID"]:
                    return web.json_response(self.lock, status=409)
                self.lock = None
        return web.Response()


async def serve(port: int) -> None:
    """For ever, at every address of this machine, a state for each path /state/NAME; /seen/NAME tells of it."""
    states: dict[str, HttpState] = defaultdict(HttpState)

    async def answer(request: web.Request) -> web.Response:
        return await states[request.match_info["name"]].answer(request)

    async def tell(request: web.Request) -> web.Response:
        state = states[request.match_info["name"]]
        return web.json_response({"resources": state.resources, "lock": state.lock})

    application = web.Application(client_max_size=_MAX_STATE_BYTES)
    application.router.add_route("*", "/state/{name}", answer)
    application.router.add_get("/seen/{name}", tell)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    await asyncio.Event().wait()


@asynccontextmanager
async def an_http_state() -> AsyncIterator[HttpState]:
    state = HttpState()
    application = web.Application(client_max_size=_MAX_STATE_BYTES)
    application.router.add_route("*", "/state", state.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.faults = HttpFaults(f"http://127.0.0.1:{runner.addresses[0][1]}", verb_of)
    try:
        async with state.faults.serving():
            yield state
    finally:
        await runner.cleanup()


def resources_of(content: bytes | None) -> list[str]:
    """Addresses, a tainted one marked as such."""
    state = json.loads(content) if content else {"resources": []}
    return [
        f"{r['type']}.{r['name']}" + (" tainted" if r["instances"][0].get("status") == "tainted" else "")
        for r in state["resources"]
    ]
