"""A small API server that gives, takes and drops single objects; what it can't do, the agent must not need."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from terrahalt_agent.adapters.cluster_api import ApiServer, ClusterApi
from tests.agent_terraform.certificates import an_authority


class FakeApi:
    """What a test has put there, or the agent; anything else is 404, `statuses` answer before that."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.statuses: list[int] = []
        self.tokens: list[str] = []
        self.asked: list[str] = []
        """The paths, in order."""
        self.hangs_up = 0
        """On so many of the next requests, which change nothing."""
        self.ports: set[int] = set()
        """Of those who asked: one for each connection."""
        self.url = ""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.holds_back: asyncio.Event | None = None
        """The next answer is found at once, and given when this is set."""

    def put(self, kind: str, name: str, **fields: Any) -> None:
        self.objects[f"/api/v1/namespaces/team-a/{kind}/{name}"] = fields

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        self.asked.append(request.path)
        assert request.transport is not None
        self.ports.add(request.transport.get_extra_info("peername")[1])
        if self.hangs_up:
            self.hangs_up -= 1
            await request.read()
            request.transport.abort()
            return web.Response()
        await self.may_answer.wait()
        if self.statuses:
            return web.json_response({}, status=self.statuses.pop(0))
        if request.method == "PATCH":
            assert request.content_type == "application/apply-patch+yaml"
            self.objects[request.path] = await request.json()
        if request.method in ("POST", "PUT"):
            return web.json_response({}, status=self._write(request.method, request.path, await request.json()))
        found = self.objects.get(request.path)
        if (held := self.holds_back) is not None:
            self.holds_back = None
            await held.wait()
        if request.method == "DELETE":
            self.objects.pop(request.path, None)
        return web.json_response(found or {}, status=200 if found else 404)

    def _write(self, method: str, path: str, body: dict[str, Any]) -> int:
        """As an API server does it: nothing is made twice, and only what was seen is replaced."""
        path += "" if method == "PUT" else f"/{body['metadata']['name']}"
        found = self.objects.get(path)
        if method == "PUT" and found is None:
            return 404
        version = found["metadata"]["resourceVersion"] if found else ""
        if version != body["metadata"].get("resourceVersion", ""):
            return 409
        body["metadata"]["resourceVersion"] = str(int(version or 0) + 1)
        self.objects[path] = body
        return 200

    def put_secret(self, name: str, **values: str | bytes) -> None:
        raw = {key: value.encode() if isinstance(value, str) else value for key, value in values.items()}
        self.put("secrets", name, data={key: base64.b64encode(value).decode() for key, value in raw.items()})

    def secret(self, name: str) -> dict[str, Any]:
        return self.objects[f"/api/v1/namespaces/team-a/secrets/{name}"]

    @property
    def names(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.objects}


@asynccontextmanager
async def asking(fake: FakeApi, directory: Path, ca: str = "") -> AsyncIterator[ClusterApi]:
    """What the agent has of it; its token and authority (any that will do, where it speaks no TLS) are files there."""
    (directory / "token").write_text("a-token\n")
    (directory / "ca").write_text(ca or an_authority(directory).ca)
    api = ClusterApi(ApiServer(fake.url, directory / "token", directory / "ca"), "team-a")
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def a_fake_api(context: ssl.SSLContext | None = None) -> AsyncIterator[FakeApi]:
    """With `context` it speaks TLS."""
    fake = FakeApi()
    application = web.Application(client_max_size=4 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    fake.url = f"{'http' if context is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
