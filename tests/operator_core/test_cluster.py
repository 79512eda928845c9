"""Requests to an API server that a test plays, over a real socket: watches, deadlines, and who may write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from terrahalt_operator.adapters.cluster import LEASES, Cluster
from terrahalt_operator.errors import ClusterError, Deposed, Unreachable

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api_server(answer: Answer) -> AsyncIterator[Cluster]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    cluster = Cluster(client.ApiClient(client.Configuration(host=f"http://{host}:{port}")))
    try:
        yield cluster
    finally:
        await cluster.close()
        await runner.cleanup()


def a_lease(version: int) -> dict[str, Any]:
    return {"metadata": {"name": "leader", "resourceVersion": str(version)}}


def telling(*events: dict[str, Any], asked: list[dict[str, str]], hangs: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        stream = web.StreamResponse()
        await stream.prepare(request)
        for event in events:
            await stream.write(json.dumps(event).encode() + b"\n")
        if hangs:
            await asyncio.sleep(3600)
        return stream

    return answer


async def seen(cluster: Cluster, silence_s: float = 5) -> list[tuple[bool, str]]:
    found = []
    async for is_gone, obj in cluster.watch(LEASES, "ops", "leader", "7", silence_s=silence_s):
        found.append((is_gone, obj["metadata"]["resourceVersion"]))
    return found


async def test_a_watch_tells_all_that_happens_to_one_object_after_a_version() -> None:
    asked: list[dict[str, str]] = []
    events = [
        {"type": "ADDED", "object": a_lease(8)},
        {"type": "MODIFIED", "object": a_lease(9)},
        {"type": "DELETED", "object": a_lease(10)},
    ]
    async with api_server(telling(*events, asked=asked)) as cluster:
        assert await seen(cluster) == [(False, "8"), (False, "9"), (True, "10")]
    assert asked == [{"watch": "true", "resourceVersion": "7", "fieldSelector": "metadata.name=leader"}]


async def test_a_watch_tells_of_all_objects_of_a_kind_however_long_they_are() -> None:
    asked: list[dict[str, str]] = []
    events = [{"type": "ADDED", "object": a_lease(8) | {"spec": {"long": "x" * 1_500_000}}}] * 2
    async with api_server(telling(*events, {"type": "ADDED", "object": a_lease(9)}, asked=asked)) as cluster:
        watch = cluster.watch(LEASES, None, "", "7", silence_s=5)
        assert [len(obj.get("spec", {}).get("long", "")) async for _, obj in watch] == [1_500_000, 1_500_000, 0]
    assert asked == [{"watch": "true", "resourceVersion": "7"}]


async def test_a_long_list_is_taken_chunk_by_chunk_as_of_when_it_began() -> None:
    taken: list[str] = []
    pages = {None: (["a", "b"], "7", "more"), "more": (["c"], "9", "")}

    async def answer(request: web.Request) -> web.StreamResponse:
        at = request.query.get("continue")
        assert taken == ([] if at is None else ["a", "b"]), "the first chunk is held no longer than it is read"
        names, version, following = pages[at]
        meta = {"resourceVersion": version} | ({"continue": following} if following else {})
        return web.json_response({"metadata": meta, "items": [{"metadata": {"name": name}} for name in names]})

    async with api_server(answer) as cluster:
        version = await cluster.each(LEASES, "ops", lambda lease: taken.append(lease["metadata"]["name"]))
    assert (taken, version) == (["a", "b", "c"], "7")


async def test_of_a_list_only_what_is_not_known_is_taken() -> None:
    listed = [{"metadata": {"uid": uid, "resourceVersion": version}} for uid, version in (("a", "1"), ("b", "2"))]

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": "7"}, "items": listed})

    taken: list[dict[str, Any]] = []
    async with api_server(answer) as cluster:
        await cluster.each(LEASES, "ops", taken.append, is_known=lambda uid, version: (uid, version) == ("a", "1"))
    assert taken == listed[1:]


async def test_a_watch_from_a_version_that_is_too_old_is_an_error() -> None:
    event = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    async with api_server(telling(event, asked=[])) as cluster:
        with pytest.raises(ClusterError, match="too old"):
            await seen(cluster)


async def test_a_watch_that_hangs_is_noticed_by_its_silence() -> None:
    async with api_server(telling({"type": "ADDED", "object": a_lease(8)}, asked=[], hangs=True)) as cluster:
        with pytest.raises(Unreachable):
            await seen(cluster, silence_s=0.1)


async def test_a_request_is_given_up_at_its_own_deadline() -> None:
    async with api_server(telling(asked=[], hangs=True)) as cluster:
        with pytest.raises(Unreachable):
            await cluster.within(0.1).get(LEASES, "ops", "leader")


async def test_a_guarded_cluster_reads_and_asks_before_each_write() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.method)
        return web.json_response(a_lease(8))

    def guard() -> None:
        raise Deposed("not any more")

    async with api_server(answer) as free:
        cluster = free.guarded(guard)
        await cluster.get(LEASES, "ops", "leader")
        for write in (
            cluster.create(LEASES, "ops", a_lease(0)),
            cluster.patch(LEASES, "ops", "leader", {}),
            cluster.delete(LEASES, "ops", "leader"),
            cluster.review_token("token", "audience"),
            cluster.within(1.0).patch(LEASES, "ops", "leader", {}),
        ):
            with pytest.raises(Deposed):
                await write
        await free.patch(LEASES, "ops", "leader", {})
    assert asked == ["GET", "PATCH"]
