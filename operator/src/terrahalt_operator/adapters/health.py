"""`/healthz` on plain HTTP: that the loop turns, how far it lags, and how old the last event is.

Says 503 only where a restart helps. Called by the kubelet; run by `app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

PORT = 8080
LAG_PROBE_S = 0.5
MAX_LAG_S = 5.0


class Health:
    def __init__(self, facts: Callable[[], dict[str, float | int | str]]) -> None:
        self._facts = facts
        self._lag_s = 0.0

    async def serve(self) -> None:
        """Until cancelled."""
        application = web.Application()
        application.router.add_get("/healthz", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, PORT).start()
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(LAG_PROBE_S)
                self._lag_s = loop.time() - before - LAG_PROBE_S
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        facts = {"loopLagSeconds": round(self._lag_s, 3), **self._facts()}
        return web.json_response(facts, status=200 if self._lag_s < MAX_LAG_S else 503)
