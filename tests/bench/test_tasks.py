"""The bench's watch of tasks, by lines that are given to it: what it waits for, and that it never waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.bench.kubernetes_api import Api, Json
from tests.bench.tasks import QUICK, Tasks, a_name, a_task


class GivenLines(Api):
    """What a watch of the API server would say, as it is put in; None ends it."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    def says(self, phase: str, name: str = "task", **status: str) -> None:
        task = {"metadata": {"name": name}, "status": {"phase": phase, **status}}
        self.says_of("MODIFIED", task)

    def says_of(self, event: str, about: Json) -> None:
        self._lines.put_nowait(json.dumps({"type": event, "object": about}))

    def ends(self) -> None:
        self._lines.put_nowait(None)

    async def lines(self, path: str) -> AsyncIterator[str]:
        while (line := await self._lines.get()) is not None:
            yield line


@asynccontextmanager
async def followed() -> AsyncIterator[tuple[GivenLines, Tasks]]:
    api, tasks = GivenLines(), Tasks()
    following = asyncio.create_task(tasks.follow(api, "1"))
    try:
        yield api, tasks
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_a_phase_is_seen_when_its_version_comes_and_at_once_when_it_has_come() -> None:
    async with followed() as (api, tasks):
        waiting = asyncio.create_task(tasks.until_phase("task", "Applying"))
        api.says("Applying", name="another")
        api.says("Planning")
        first = await tasks.until_phase("task", "Planning")
        assert not waiting.done()
        api.says("Applying")
        assert await waiting >= first
        assert await tasks.until_phase("task", "Planning") == first
        assert [task["status"]["phase"] for _, task in tasks.versions("task")] == ["Planning", "Applying"]


async def test_another_end_than_the_one_that_is_waited_for_is_said() -> None:
    async with followed() as (api, tasks):
        api.says("Failed", finishedAt="2027-01-15T08:00:00Z", message="no source")
        _, status = await tasks.until_ended("task", "Failed")
        assert status["message"] == "no source"
        with pytest.raises(TimeoutError, match="ended as Failed: no source"):
            await tasks.until_ended("task", "Cancelled")


async def test_who_waits_is_told_what_was_seen_last_and_that_the_watch_is_over() -> None:
    async with followed() as (api, tasks):
        api.says("Queued")
        await tasks.until_phase("task", "Queued")
        with pytest.raises(TimeoutError, match=r"should end; its status: .*Queued"):
            await tasks.until("task", lambda status: "finishedAt" in status, "end", within_s=0.01)
        waiting = asyncio.create_task(tasks.until_phase("task", "Applying"))
        api.ends()
        with pytest.raises(TimeoutError, match=r"should be Applying.*the watch is over: the API server ended it"):
            await waiting


@pytest.mark.parametrize("trouble", ["error", "connection"])
async def test_a_watch_that_breaks_is_over(trouble: str) -> None:
    class Broken(GivenLines):
        async def lines(self, path: str) -> AsyncIterator[str]:
            if trouble == "connection":
                raise aiohttp.ServerDisconnectedError("cut")
            async for line in super().lines(path):
                yield line

    api, tasks = Broken(), Tasks()
    api.says_of("ERROR", {"code": 410})
    await tasks.follow(api, "1")
    with pytest.raises(TimeoutError, match=r"the watch is over: .*(410|cut)"):
        await tasks.until_phase("task", "Queued")


def test_a_task_has_a_workspace_of_its_own_unless_it_is_given_one() -> None:
    assert a_task("one", "Plan", QUICK)["spec"]["workspace"] == "one"
    assert a_task("two", "Plan", QUICK, workspace="one")["spec"]["workspace"] == "one"
    assert a_name("cancel", 1).endswith("-1")
