"""Kubernetes Events, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from terrahalt_operator.adapters.events import MAX_WAITING, WRITTEN_AFTER_S, Events
from tests.operator_core import builders as b
from tests.operator_core.virtual_time import now, virtually


class _Cluster:
    def __init__(self) -> None:
        self.written: list[tuple[float, str]] = []

    async def create(self, _resource: object, _namespace: str, body: dict[str, Any]) -> None:
        self.written.append((now(), body["reason"]))


@asynccontextmanager
async def being_written() -> AsyncIterator[tuple[Events, _Cluster]]:
    cluster = _Cluster()
    events = Events(cast(Any, cluster), "operator-1")
    writer = asyncio.create_task(events.run())
    yield events, cluster
    writer.cancel()


def test_what_happened_is_written_in_its_order_after_what_happens_now() -> None:
    async def main() -> None:
        async with being_written() as (events, cluster):
            events.tell(b.a_task(), "Applying", "Applying", "", b.NOW)
            await asyncio.sleep(WRITTEN_AFTER_S / 2)
            events.tell(b.a_task(uid="another"), "Planning", "Planning", "", b.NOW)
            assert cluster.written == []
            await asyncio.sleep(WRITTEN_AFTER_S)
            events.tell(b.a_task(), "Cancelled", "CancelledByUser", "", b.NOW)
            await asyncio.sleep(2 * WRITTEN_AFTER_S)
            assert cluster.written == [
                (WRITTEN_AFTER_S, "Applying"),
                (1.5 * WRITTEN_AFTER_S, "Planning"),
                (2.5 * WRITTEN_AFTER_S, "CancelledByUser"),
            ]

    virtually(main())


def test_a_phase_that_is_over_in_a_moment_is_not_told_of() -> None:
    async def main() -> None:
        async with being_written() as (events, cluster):
            for phase in ("Assigned", "Preparing", "Planning"):
                events.tell(b.a_task(), phase, phase, "", b.NOW)
                await asyncio.sleep(WRITTEN_AFTER_S / 10)
            await asyncio.sleep(2 * WRITTEN_AFTER_S)
            assert [reason for _, reason in cluster.written] == ["Planning"]

    virtually(main())


def test_what_else_is_told_of_a_phase_takes_nothing_from_it() -> None:
    async def main() -> None:
        async with being_written() as (events, cluster):
            for reason in ("Planning", "Superseded"):
                events.tell(b.a_task(), "Planning", reason, "", b.NOW)
            await asyncio.sleep(2 * WRITTEN_AFTER_S)
            assert [reason for _, reason in cluster.written] == ["Planning", "Superseded"]

    virtually(main())


def test_where_more_wait_than_are_kept_the_oldest_are_left_out() -> None:
    async def main() -> None:
        async with being_written() as (events, cluster):
            for number in range(MAX_WAITING + 2):
                events.tell(b.a_task(uid=f"task-{number}"), "Failed", f"of {number}", "", b.NOW)
            await asyncio.sleep(2 * WRITTEN_AFTER_S)
            assert [reason for _, reason in cluster.written] == [f"of {n}" for n in range(2, MAX_WAITING + 2)]
            assert not events._latest, "of those left out nothing is kept"

    virtually(main())
