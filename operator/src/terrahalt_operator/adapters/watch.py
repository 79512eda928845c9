"""What happens in the cluster, by kopf: watching only, in a thread and a loop of its own.

kopf writes nothing here: event handlers alone, null storages, no posting, no peering. Handlers hand
each object over and return, because all events of one object run through one worker of kopf: one
that waits would delay a cancel. A crash of kopf is told to the main loop, which ends the process;
Kubernetes starts it anew. The only door to kopf. Called by `app`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

import kopf

from terrahalt_operator.adapters.cluster import LIST_CHUNK
from terrahalt_operator.core import names

log = logging.getLogger(__name__)

Deliver = Callable[[str, bool, dict[str, Any]], None]
"""(plural, whether it is gone, the object); called in the main loop."""

AGENT_SELECTOR = f"{names.NAME_LABEL}={names.AGENT_NAME}"
ENDS_WITHIN_S = 1.0
BACKOFF_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


class _ForEver:
    """kopf gives up once it has waited for each of these: an API server that answers 5xx for longer than that, or a
    namespace in which nothing may be watched any more, would end the watches of all others."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(BACKOFF_S, itertools.repeat(BACKOFF_S[-1]))


class _NoDiffBase(kopf.DiffBaseStorage):
    """No handler here asks what changed; computing it is 64 % of an event's cost."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """No handler here is ever half-done."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class Watch:
    """Runs kopf until `stop`; `last_event_s` is the age that /healthz shows."""

    def __init__(self, deliver: Deliver, died: Callable[[str], None], namespaces: Collection[str]) -> None:
        self._deliver, self._died, self._namespaces = deliver, died, namespaces
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._last_event = time.monotonic()

    @property
    def last_event_s(self) -> float:
        return time.monotonic() - self._last_event

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        """kopf's own end is not waited for: it may never come, and nothing here has to be ended well."""
        loop = asyncio.new_event_loop()
        loop.run_until_complete(self._operate())
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=ENDS_WITHIN_S))
        loop.close()

    async def _operate(self) -> None:
        """Until the first of its tasks ends: the one that looks whether it is to stop, or one that fails."""
        try:
            tasks = await kopf.spawn_tasks(
                registry=self._registry(),
                settings=_settings(),
                clusterwide=not self._namespaces,
                namespaces=list(self._namespaces),
                stop_flag=self._stop,
            )
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            why = ", ".join(repr(task.exception()) for task in ended if not task.cancelled())
        except Exception as error:
            why = repr(error)
        if not self._stop.is_set():
            self._loop.call_soon_threadsafe(self._died, f"kopf ended: {why}")
            self._stop.set()  # a thread of kopf's waits for it

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        def observe(plural: str) -> Callable[..., Coroutine[Any, Any, None]]:
            async def handler(event: Mapping[str, Any], **_: Any) -> None:  # kopf has others run in yet another thread
                self._last_event = time.monotonic()
                obj = dict(event["object"])
                self._loop.call_soon_threadsafe(self._deliver, plural, event["type"] == "DELETED", obj)

            return handler

        kopf.on.event(names.GROUP, names.VERSION, "terraformtasks", registry=registry, id="task")(
            observe("terraformtasks")
        )
        kopf.on.event(names.GROUP, names.VERSION, "agentpools", registry=registry, id="pool")(observe("agentpools"))
        kopf.on.event("", "v1", "pods", registry=registry, id="pod")(observe("pods"))
        return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    # kopf takes the finalizer of this name from every object; so it must be nobody's.
    settings.persistence.finalizer = "terrahalt.dev/kopf-unused"
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 0.5
    settings.watching.chunk_size = LIST_CHUNK
    settings.watching.reconnect_backoff = 0.02
    settings.watching.inactivity_timeout = 70
    settings.watching.connect_timeout = 5
    settings.watching.label_selectors["", "v1", "pods"] = AGENT_SELECTOR
    settings.networking.request_timeout = 15
    settings.networking.error_backoffs = _ForEver()
    return settings
