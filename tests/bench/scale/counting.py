"""A pass-through to the API server that counts what the operator asks of it.

The operator speaks plain HTTP to it, by a kubeconfig that names it; it speaks to the API server as the driver does. It
costs time, so nothing is timed while an operator uses it. Called by `plain`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.bench.kubernetes_api import Api

_MAX_BYTES = 2**24
_PASSED_ON = ("Content-Type", "Accept")


class Counting:
    def __init__(self, api: Api) -> None:
        self._api = api
        self.requests: Counter[tuple[str, str]] = Counter()
        """(method, path with its query) -> how often."""
        self.sent_bytes: Counter[tuple[str, str]] = Counter()
        self.url = ""

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        key = request.method, request.path_qs
        self.requests[key] += 1
        self.sent_bytes[key] += len(body)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        async with self._api.passed_on(request.method, request.path_qs, body, headers) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            except (aiohttp.ClientError, ConnectionError):
                return response  # who asked is gone, or the API server has ended it
            await response.write_eof()
            return response

    def kubeconfig(self, path: Path) -> Path:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "counted", "cluster": {"server": self.url}}],
                    "users": [{"name": "counted", "user": {"token": "the pass-through has its own"}}],
                    "contexts": [{"name": "counted", "context": {"cluster": "counted", "user": "counted"}}],
                    "current-context": "counted",
                }
            ),
            encoding="utf-8",
        )
        return path


@asynccontextmanager
async def counted(api: Api) -> AsyncIterator[Counting]:
    counting = Counting(api)
    application = web.Application(client_max_size=_MAX_BYTES)
    application.router.add_route("*", "/{path:.*}", counting.pass_on)
    # A watch is ended with the one who asked for it.
    runner = web.AppRunner(
        application, handle_signals=False, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        counting.url = f"http://{host}:{port}"
        yield counting
    finally:
        await runner.cleanup()
