"""Kubernetes Events, on a clock that jumps."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from terrahalt_operator.adapters.events import WRITTEN_AFTER_S, Events
from tests.operator_core import builders as b
from tests.operator_core.virtual_time import now, virtually


class _Cluster:
    def __init__(self) -> None:
        self.written: list[tuple[float, str]] = []

    async def create(self, _resource: object, _namespace: str, body: dict[str, Any]) -> None:
        self.written.append((now(), body["reason"]))


def test_what_happened_is_written_in_its_order_after_what_happens_now() -> None:
    async def main() -> None:
        cluster = _Cluster()
        events = Events(cast(Any, cluster), "operator-1")
        writer = asyncio.create_task(events.run())
        events.tell(b.a_task(), "Assigned", "Assigned", "", b.NOW)
        await asyncio.sleep(WRITTEN_AFTER_S / 2)
        events.tell(b.a_task(), "Planning", "Planning", "", b.NOW)
        assert cluster.written == []
        await asyncio.sleep(2 * WRITTEN_AFTER_S)
        assert cluster.written == [(WRITTEN_AFTER_S, "Assigned"), (1.5 * WRITTEN_AFTER_S, "Planning")]
        writer.cancel()

    virtually(main())
