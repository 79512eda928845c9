"""The bench's own eyes on the node: starts `on_node` in a pod, and keeps what it tells.

So the moments of terraform come from the node's kernel and terraform's own clock, not from what the product
says of itself. Its namespace must allow privileged pods. Called by `system`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.kubernetes_api import Api, Json, within

POD = "bench-witness"
_START_S = 60.0
_SCRIPT = Path(__file__).with_name("on_node.py")


class Witness:
    def __init__(self) -> None:
        self._told: list[Json] = []
        self._changed = asyncio.Condition()
        self._is_over = False

    async def follow(self, api: Api, namespace: str) -> None:
        async for line in api.lines(f"/api/v1/namespaces/{namespace}/pods/{POD}/log?follow=true"):
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                async with self._changed:
                    self._told.append(told)
                    self._changed.notify_all()
        self._is_over = True

    async def saw(self, event: str, pod: str, within_s: float, command: str = "") -> Json:
        """The first such thing, past or to come. Raises TimeoutError."""

        def found() -> Json | None:
            for told in self._told:
                if (told["event"], told["pod"], told.get("command", "")) == (event, pod, command):
                    return told
            return None

        async def wait() -> Json:
            async with self._changed:
                return await self._changed.wait_for(found) or {}

        def what() -> str:
            ended = f"; the witness itself has ended: look at the log of pod {POD}" if self._is_over else ""
            return f"the witness on the node should have seen '{event}' {command} of pod {pod}{ended}"

        return await within(within_s, wait(), what)


@asynccontextmanager
async def a_witness(api: Api, namespace: str, image: str, node: str) -> AsyncIterator[Witness]:
    """Removed at the end."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    await api.delete(f"{path}/{POD}?gracePeriodSeconds=0")
    await api.create(path, _pod(image, node))
    await api.until(
        f"{path}/{POD}", lambda pod: pod["status"].get("phase") == "Running", _START_S, "the witness does not run"
    )
    witness = Witness()
    following = asyncio.create_task(witness.follow(api, namespace), name="witness")
    try:
        yield witness
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await following
        await api.delete(f"{path}/{POD}?gracePeriodSeconds=0")


def _pod(image: str, node: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "hostPID": True,
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "witness",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", _SCRIPT.read_text(encoding="utf-8")],
                    "securityContext": {"privileged": True, "runAsUser": 0},
                }
            ],
        },
    }
