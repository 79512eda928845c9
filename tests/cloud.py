"""The cloud that the provider `trial` works on: it counts what really was done to it, outside of terraform.

An operation lasts as long as the provider holds the connection that began it, so its end is seen here
whatever ended it: also the SIGKILL of a process that could tell nobody. What the words of a script do
is in tests/provider/script.go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Cloud:
    """The counters' keys are kinds of operations: create, read, update, delete, validate, configure."""

    def __init__(self) -> None:
        self.url = ""
        self.objects: set[str] = set()
        """Names of what exists."""
        self.begun, self.finished, self.aborted = Counter[str](), Counter[str](), Counter[str]()
        self.at_work: list[tuple[str, str]] = []
        """Kind and name of the operations that some process works on now."""
        self.most_at_work = 0
        """Of creates, updates and deletes at one time."""
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], Any], within_s: float = 60.0) -> Any:
        """Looks again whenever something has happened here."""
        async with asyncio.timeout(within_s):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
            return found

    async def until_begun(self, kind: str, count: int = 1) -> None:
        await self.until(lambda: self.begun[kind] >= count)

    async def until_nobody_works(self, within_s: float = 10.0) -> None:
        """For the kernel's news of closed connections to get here: no time for an operation to go on."""
        await self.until(lambda: not self.at_work, within_s)

    async def begin(self, request: web.Request) -> web.StreamResponse:
        operation = request.match_info["kind"], request.match_info["name"]
        answer = web.StreamResponse()
        await answer.prepare(request)
        self.begun[operation[0]] += 1
        self.at_work.append(operation)
        changing = sum(kind in ("create", "update", "delete") for kind, _ in self.at_work)
        self.most_at_work = max(self.most_at_work, changing)
        self._changed.set()
        try:
            await asyncio.Event().wait()  # cancelled when the other side is gone
        finally:
            self.at_work.remove(operation)
            self._changed.set()
        return answer

    async def end(self, request: web.Request) -> web.Response:
        kind, name, how = (request.match_info[part] for part in ("kind", "name", "how"))
        (self.finished if how == "finished" else self.aborted)[kind] += 1
        if (kind, how) == ("create", "finished"):
            self.objects.add(name)
        if (kind, how) == ("delete", "finished"):
            self.objects.discard(name)
        self._changed.set()
        return web.Response()

    async def look(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.objects else 404)


@asynccontextmanager
async def a_cloud() -> AsyncIterator[Cloud]:
    cloud = Cloud()
    application = web.Application()
    application.router.add_post("/{kind}/{name}", cloud.begin)
    application.router.add_put("/{kind}/{name}/{how:finished|aborted}", cloud.end)
    application.router.add_get("/objects/{name}", cloud.look)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cloud.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield cloud
    finally:
        await runner.cleanup()
