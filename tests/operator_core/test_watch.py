"""kopf watches on, whatever the API server answers; where it ends nevertheless, that is told at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from terrahalt_operator.adapters import watch
from terrahalt_operator.adapters.watch import Watch

WAITS_S = (0.01, 0.02)
GROUP = "terrahalt.dev/v1alpha1"
TASK = {
    "apiVersion": GROUP,
    "kind": "TerraformTask",
    "metadata": {"name": "network", "namespace": "team-a", "uid": "1", "resourceVersion": "2"},
}
PATCHABLE = {"namespaced": True, "singularName": "", "verbs": ["list", "watch", "patch"]}
ANSWERS: dict[str, Any] = {
    "/api": {"versions": ["v1"]},
    "/apis": {"groups": [{"name": "terrahalt.dev", "preferredVersion": {"version": "v1alpha1"}, "versions": []}]},
    "/api/v1": {
        "resources": [
            {"name": "pods", "kind": "Pod"} | PATCHABLE,
            {"name": "namespaces", "kind": "Namespace"} | PATCHABLE | {"namespaced": False},
        ]
    },
    f"/apis/{GROUP}": {
        "resources": [
            {"name": "terraformtasks", "kind": "TerraformTask"} | PATCHABLE,
            {"name": "agentpools", "kind": "AgentPool"} | PATCHABLE,
        ]
    },
}
ANSWERS["/apis"]["groups"][0]["versions"] = [{"version": "v1alpha1", "groupVersion": GROUP}]


class Server:
    """As much of an API server as kopf asks for. A watch tells of one task, and then of nothing."""

    def __init__(self) -> None:
        self.status = 200
        """Of all watches from now on."""
        self.refused: set[str] = set()
        """Namespaces in which nothing may be listed or watched."""
        self.asked = 0
        """Watches that got no 200."""
        self.has_asked = asyncio.Event()
        self.opened: asyncio.Queue[str] = asyncio.Queue()
        """Paths of the watches that got it."""
        self.event: dict[str, Any] = {"type": "MODIFIED", "object": TASK}
        self.ends = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in ANSWERS:
            return web.json_response(ANSWERS[request.path])
        is_watch = request.query.get("watch") == "true"
        status = self.status if is_watch else 200
        if any(f"/namespaces/{namespace}/" in request.path for namespace in self.refused):
            status = 403
        if status != 200:
            self.asked += 1
            self.has_asked.set()
            return web.json_response({"kind": "Status", "code": status, "message": "no"}, status=status)
        if not is_watch:
            return web.json_response({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
        stream = web.StreamResponse()
        await stream.prepare(request)
        if request.path.endswith("terraformtasks"):
            await stream.write(json.dumps(self.event).encode() + b"\n")
        self.opened.put_nowait(request.path)
        await self.ends.wait()
        return stream

    async def until_asked(self, times: int) -> None:
        while self.asked < times:
            self.has_asked.clear()
            await self.has_asked.wait()


class Watched:
    """What a watch has handed over, and why it ended."""

    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.watch = Watch(lambda plural, *_: self.seen.put_nowait(plural), self.died.set_result, namespaces)


@asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[None]:
    watched.watch.start()
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        await asyncio.to_thread(watched.watch.stop)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": f"http://{host}:{port}"}}],
        "users": [{"name": "x", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(watch, "BACKOFF_S", WAITS_S)
    yield server
    server.ends.set()
    await runner.cleanup()


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_what_a_watch_is_answered_in_between_ends_none(server: Server, status: int) -> None:
    server.status = status
    watched = Watched()
    async with watching(watched):
        await server.until_asked(6 * (len(WAITS_S) + 1))  # of three watches: each twice as often as kopf has waits
        server.status = 200
        assert await watched.seen.get() == "terraformtasks"
        assert not watched.died.done()


async def test_a_namespace_in_which_nothing_may_be_watched_ends_no_watch_of_another(server: Server) -> None:
    server.refused.add("team-b")
    watched = Watched(("team-a", "team-b"))
    async with watching(watched):
        await server.until_asked(6 * (len(WAITS_S) + 1))
        server.refused.clear()
        paths = {await server.opened.get() for _ in range(6)}
        assert len([path for path in paths if "/namespaces/team-b/" in path]) == 3
        assert not watched.died.done()


async def test_an_end_of_kopf_is_told_at_once(server: Server) -> None:
    server.event = {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "the cache is gone"}}
    watched = Watched()
    async with watching(watched):
        assert "the cache is gone" in await watched.died
        await asyncio.to_thread(watched.watch._thread.join, 10)
        assert not watched.watch._thread.is_alive()


async def test_what_keeps_kopf_from_beginning_is_told_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> None:
        raise ValueError("no such setting")

    monkeypatch.setattr(watch, "_settings", settings)
    watched = Watched()
    async with watching(watched):
        assert "no such setting" in await watched.died


async def test_an_end_that_was_asked_for_is_told_to_nobody(server: Server) -> None:
    watched = Watched()
    async with watching(watched):
        await watched.seen.get()
    assert not watched.died.done()
    assert not watched.watch._thread.is_alive()
