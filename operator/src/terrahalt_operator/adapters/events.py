"""Kubernetes Events: each phase that lasts for a moment once, for `kubectl describe` and `kubectl get events`.

Nothing waits for them and nothing rests on them: where the API server is slow, the oldest are left out.
Called by `app`, which runs it; `effects` tells it what happened.
"""

from __future__ import annotations

import asyncio
import logging

from terrahalt_operator.adapters.cluster import EVENTS, Cluster, Json
from terrahalt_operator.core import names
from terrahalt_operator.core.model import CANCELLED, FAILED, Task
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.errors import ClusterError

log = logging.getLogger(__name__)

MAX_WAITING = 1_000
WRITTEN_AFTER_S = 1.0
"""What a run does next comes first; and a phase that it has left again by then is not told of, each being a request."""
MAX_NOTE_CHARS = 1_000
"""The API server takes 1,024 bytes."""


class Events:
    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster, self._instance = cluster, instance
        self._waiting: asyncio.Queue[tuple[float, Task, Json]] = asyncio.Queue(MAX_WAITING)
        """With when each may be written, on the loop's clock."""
        self._latest: dict[str, Json] = {}
        """Task UID -> the last one that waits."""

    def tell(self, task: Task, action: str, reason: str, note: str, now: float) -> None:
        body: Json = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{task.name[:50]}-", "namespace": task.namespace},
            "eventTime": timestamp(now),
            "reportingController": "terrahalt.dev/operator",
            "reportingInstance": self._instance[:128],
            "action": action,
            "reason": reason,
            "note": note.encode()[:MAX_NOTE_CHARS].decode(errors="ignore"),
            "type": "Warning" if action in (FAILED, CANCELLED) else "Normal",
            "regarding": {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": "TerraformTask",
                "namespace": task.namespace,
                "name": task.name,
                "uid": task.uid,
            },
        }
        if self._waiting.full():
            self._is_overtaken(*self._waiting.get_nowait()[1:])
        self._latest[task.uid] = body
        self._waiting.put_nowait((asyncio.get_running_loop().time() + WRITTEN_AFTER_S, task, body))

    def _is_overtaken(self, task: Task, body: Json) -> bool:
        """By another phase of its task; it waits no more."""
        latest = self._latest.get(task.uid)
        if latest is body:
            del self._latest[task.uid]
        return latest is not None and latest["action"] != body["action"]

    async def run(self) -> None:
        while True:
            at, task, body = await self._waiting.get()
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            if self._is_overtaken(task, body):
                continue
            try:
                await self._cluster.create(EVENTS, task.namespace, body)
            except ClusterError as error:
                log.debug("event not written: %s", error)
