"""What is told to agents first, and that nothing is written on that way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_operator.core.actions import Send, WriteStatus
from terrahalt_operator.core.model import Snapshot
from terrahalt_operator.reconciler import Reconciler
from tests.operator_core import builders as b


def looked_at(kind: str, snapshot: Snapshot) -> list[Any]:
    """The actions that a look at its task carries out."""
    done: list[Any] = []

    async def on_task(_uid: str, action: Any) -> None:
        done.append(action)

    world = SimpleNamespace(
        tasks=SimpleNamespace(values={snapshot.task.uid: snapshot.task}), snapshot=lambda _: snapshot
    )
    reconciler = Reconciler(
        world=cast(Any, world),
        effects=cast(Any, SimpleNamespace(on_task=on_task)),
        worklist=cast(Any, SimpleNamespace(wake_after=lambda *_: None)),
        leadership=cast(Any, None),
        clock=lambda: b.NOW,
    )
    asyncio.run(reconciler.work((kind, snapshot.task.uid)))
    return done


def a_cancelled_run() -> Snapshot:
    return b.a_snapshot(task=b.a_given_task(spec=b.a_spec(cancel=True)), session=b.holding(b.RUN), report=b.a_report())


def test_a_cancel_goes_out_alone_and_what_is_written_of_it_is_left_to_the_tasks_own_look() -> None:
    assert [type(action) for action in looked_at("cancel", a_cancelled_run())] == [Send]
    assert [type(action) for action in looked_at("task", a_cancelled_run())] == [Send, WriteStatus]


@pytest.mark.parametrize("task", [b.a_task(), b.a_given_task()], ids=["stamped, with a claim", "that runs"])
def test_nothing_that_follows_from_a_write_is_sent_before_it(task: Any) -> None:
    snapshot = b.a_snapshot(task=task, session=b.a_session(runs=frozenset()))
    assert any(isinstance(action, Send) for action in looked_at("task", snapshot))
    assert looked_at("cancel", snapshot) == []
