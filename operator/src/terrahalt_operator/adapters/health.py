"""`/healthz`, `/readyz` and `/metrics` on plain HTTP: that the loop turns, how far it lags, who leads, how old the
news is, and what Prometheus asks for.

`/healthz` says 503 only where a restart helps; one that stands by is as healthy as one that leads. `/readyz` says
200 once it leads, or could and sees another one lead. `/metrics` is written in a thread: of many pools it is long,
and the loop has cancels to send. Called by the kubelet and Prometheus; run by `app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

PORT = 8080
LAG_PROBE_S = 0.5
MAX_LAG_S = 5.0

Facts = Mapping[str, float | int | str | None]


class Health:
    def __init__(self, facts: Callable[[], Facts], metrics: Callable[[], tuple[bytes, str]]) -> None:
        """`metrics`: the page and its content type; called in a thread."""
        self._facts, self._page = facts, metrics
        self.lag_s = 0.0
        self.is_ready = False

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def serve(self) -> None:
        """Until cancelled."""
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, PORT).start()
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(LAG_PROBE_S)
                self.lag_s = loop.time() - before - LAG_PROBE_S
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return self._answer(self.lag_s < MAX_LAG_S)

    async def _readyz(self, _: web.Request) -> web.Response:
        return self._answer(self.is_ready)

    async def _metrics(self, _: web.Request) -> web.Response:
        page, content_type = await asyncio.to_thread(self._page)
        return web.Response(body=page, headers={"Content-Type": content_type})

    def _answer(self, is_well: bool) -> web.Response:
        facts = {"loopLagSeconds": round(self.lag_s, 3), **self._facts()}
        return web.json_response(facts, status=200 if is_well else 503)
