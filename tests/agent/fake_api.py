"""A small API server that gives single objects; what it can't do, the agent must not need."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class FakeApi:
    """GETs of what a test has put there; anything else is 404, `status` answers before that."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.statuses: list[int] = []
        self.tokens: list[str] = []
        self.url = ""
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def put(self, kind: str, name: str, **fields: Any) -> None:
        self.objects[f"/api/v1/namespaces/team-a/{kind}/{name}"] = fields

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        await self.may_answer.wait()
        if self.statuses:
            return web.json_response({}, status=self.statuses.pop(0))
        found = self.objects.get(request.path)
        return web.json_response(found or {}, status=200 if found else 404)

    def put_secret(self, name: str, **values: str) -> None:
        self.put(
            "secrets", name, data={key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        )


@asynccontextmanager
async def a_fake_api() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    application = web.Application()
    application.router.add_get("/{path:.*}", fake.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
