"""The bench's tasks: what they are made of, and each version of them, as a watch of the bench's own got it.

So a phase is seen when the API server tells of it, as a person's client would see it; nothing is polled while
something is timed. Called by the parts that use the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.kubernetes_api import Api, Json, within
from tests.bench.system import POOL, TASKS

ENDS_S = 60.0
# Runs for minutes, stops when terraform is asked to, and needs no provider.
SLOW: Json = {
    "inline": {
        "main.tf": """
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    interpreter = ["sleep"]
    command     = "300"
  }
}
"""
    }
}
GREETING = 'output "greeting" {\n  value = "hello"\n}\n'
QUICK: Json = {"inline": {"main.tf": 'resource "terraform_data" "quick" {}\n' + GREETING}}


class Tasks:
    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, Json]]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._why_over = ""

    async def follow(self, api: Api, version: str) -> None:
        try:
            async for line in api.lines(f"{TASKS}?watch=1&timeoutSeconds=3600&resourceVersion={version}"):
                at, event = time.time(), json.loads(line)
                if event["type"] == "ERROR":
                    self._why_over = line
                    break
                async with self._changed:
                    self._seen[event["object"]["metadata"]["name"]].append((at, event["object"]))
                    self._changed.notify_all()
            self._why_over = self._why_over or "the API server ended it"
        except Exception as error:
            self._why_over = repr(error)
        finally:
            async with self._changed:
                self._changed.notify_all()

    def versions(self, name: str) -> Sequence[tuple[float, Json]]:
        """When each came, the oldest first."""
        return self._seen[name]

    async def until(
        self, name: str, condition: Callable[[Json], Any], what: str, within_s: float = ENDS_S
    ) -> tuple[float, Json]:
        """The first version, past or to come, for whose status the condition holds, and when it came.

        Raises TimeoutError."""

        def found() -> tuple[float, Json] | None:
            return next(((at, task) for at, task in self._seen[name] if condition(task.get("status", {}))), None)

        def latest() -> str:
            seen = self._seen[name]
            over = f"; the watch is over: {self._why_over}" if self._why_over else ""
            return f"task {name} should {what}; its status: {seen[-1][1].get('status') if seen else None}{over}"

        async def wait() -> tuple[float, Json] | None:
            async with self._changed:
                await self._changed.wait_for(lambda: found() or self._why_over)
                return found()

        came = await within(within_s, wait(), latest)
        if came is None:
            raise TimeoutError(latest())
        return came

    async def until_phase(self, name: str, phase: str) -> float:
        at, _ = await self.until(name, lambda status: status.get("phase") == phase, f"be {phase}")
        return at

    async def until_ended(self, name: str, phase: str) -> tuple[float, Json]:
        """When its end came, and the status. Raises TimeoutError where that is another one."""
        at, task = await self.until(name, lambda status: "finishedAt" in status, "end")
        status: Json = task["status"]
        if status["phase"] != phase:
            raise TimeoutError(f"task {name} ended as {status['phase']}: {status['message']}")
        return at, status


@asynccontextmanager
async def watched_tasks(api: Api) -> AsyncIterator[Tasks]:
    """From what there is now on."""
    tasks = Tasks()
    version = (await api.get(f"{TASKS}?limit=1"))["metadata"]["resourceVersion"]
    following = asyncio.create_task(tasks.follow(api, version), name="watch of tasks")
    try:
        yield tasks
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def a_name(part: str, number: int) -> str:
    """Of no task before it, of this or of an earlier bench."""
    return f"{part}-{time.time_ns() // 1_000_000 % 10**9}-{number}"


def a_task(name: str, action: str, source: Json, *, pool: str = POOL, workspace: str = "", **more: object) -> Json:
    """`workspace`: its name, where none is given."""
    spec = {"action": action, "workspace": workspace or name, "poolRef": {"name": pool}, "source": source}
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": name},
        "spec": spec | more,
    }
