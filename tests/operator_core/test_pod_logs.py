"""A run's log from its pod, where the agent could not keep it: what of it, in which Secret, and that nothing waits."""

from __future__ import annotations

import asyncio
import base64
import gzip
from typing import Any

import pytest
from aiohttp import web

from terrahalt_operator.adapters import pod_logs
from terrahalt_operator.adapters.cluster import Cluster
from tests.operator_core.builders import RUN, a_claim, a_task
from tests.operator_core.test_cluster import api_server

MARK = f"terrahalt: run {RUN}: ".encode()


class Server:
    """Has the log of one pod, and takes Secrets."""

    def __init__(self, log: bytes | int, code: int = 201) -> None:
        self.asked: list[tuple[str, str]] = []
        self.secrets: list[dict[str, Any]] = []
        self._log, self._code = log, code

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs))
        if request.method == "GET":
            return web.Response(body=self._log) if isinstance(self._log, bytes) else web.Response(status=self._log)
        self.secrets.append(await request.json())
        reason = "AlreadyExists" if self._code == 409 else ""
        return web.json_response({"reason": reason}, status=self._code)


async def kept(server: Server) -> bool:
    async with api_server(server.answer) as cluster:
        return await pod_logs.keep(cluster, a_task(), a_claim())


def text_of(server: Server) -> bytes:
    (secret,) = server.secrets
    return gzip.decompress(base64.b64decode(secret["data"]["log.gz"]))


async def test_the_log_of_the_run_alone_is_kept_for_its_task() -> None:
    server = Server(b"terrahalt: run 01BEFORE: done\n" + MARK + b"preparing\nPlan: 1 to add\nKilled\n")
    assert await kept(server)
    assert server.asked == [
        ("GET", f"/api/v1/namespaces/team-a/pods/{a_claim().pod_name}/log?container=agent"),
        ("POST", "/api/v1/namespaces/team-a/secrets"),
    ]
    assert text_of(server) == MARK + b"preparing\nPlan: 1 to add\nKilled\n"
    metadata = server.secrets[0]["metadata"]
    assert metadata["name"] == f"terrahalt-log-{RUN.lower()}"
    assert [owner["uid"] for owner in metadata["ownerReferences"]] == [a_task().uid]


async def test_of_a_log_that_is_too_long_the_end_is_kept_in_whole_lines() -> None:
    lines = [b"line %06d\n" % n for n in range(400_000)]
    server = Server(MARK + b"preparing\n" + b"".join(lines))
    assert await kept(server)
    note, *rest = text_of(server).splitlines(keepends=True)
    assert rest == lines[-len(rest) :]
    assert len(rest) > 100_000
    missing = len(MARK + b"preparing\n") + sum(map(len, lines[: -len(rest)]))
    assert b": %d bytes are left out" % missing in note


async def test_what_its_agent_or_another_operator_has_kept_stays() -> None:
    assert await kept(Server(MARK + b"x\n", code=409))


@pytest.mark.parametrize("server", [Server(404), Server(500), Server(b""), Server(b"x\n", code=403)])
async def test_a_log_that_can_not_be_had_or_kept_is_done_without(server: Server) -> None:
    assert not await kept(server)


async def test_a_kubelet_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_logs, "TIMEOUT_S", 0.05)

    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x\n")
        await asyncio.sleep(3600)
        return response

    async def keep(cluster: Cluster) -> bool:
        return await pod_logs.keep(cluster, a_task(), a_claim())

    async with api_server(hang) as cluster, asyncio.timeout(5):
        assert not await keep(cluster)
