"""What is told to agents first, and that nothing is written on that way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_operator.core.actions import AddPoolFinalizer, CreateAgents, Send, UnlabelAgent, WriteStatus
from terrahalt_operator.core.model import Snapshot
from terrahalt_operator.errors import Refused
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.store import Claims
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


class Pooled:
    """One look at a pool with an agent that has ended with its run's label on, and needs another one in its place."""

    def __init__(self, refused: type) -> None:
        self.did: list[str] = []
        self.refused = refused
        over = b.a_view(ended=b.an_end(), run_label=b.RUN, last_task_label="ended")
        self.snapshot = b.a_pool_snapshot(pool=b.a_pool(has_finalizer=False, min_idle=1), agents=(over,))

    async def on_pool(self, _key: Any, _pool: Any, action: Any) -> bool:
        self.did.append(type(action).__name__)
        if isinstance(action, self.refused):
            raise Refused("403: a webhook lets nobody change this pod")
        return False

    async def _notes(self, what: str) -> None:
        self.did.append(what)

    def look(self) -> None:
        effects = SimpleNamespace(
            clear_doubt=lambda _: self._notes("clears doubt"),
            on_pool=self.on_pool,
            write_pool_status=lambda *_: self._notes("writes the status"),
            guard_agents=lambda *_: self._notes("guards"),
        )
        world = SimpleNamespace(pool_snapshot=lambda *_: self.snapshot, queueing={}, begins_at={}, claims=Claims())
        reconciler = Reconciler(
            world=cast(Any, world),
            effects=cast(Any, effects),
            worklist=cast(Any, SimpleNamespace()),
            leadership=cast(Any, None),
            clock=lambda: b.NOW,
        )
        asyncio.run(reconciler.work(("pool", "team-a", "default")))


def test_an_agent_that_nobody_may_change_holds_up_nothing_of_its_pool_and_is_tried_again() -> None:
    pooled = Pooled(UnlabelAgent)
    with pytest.raises(Refused, match="a webhook"):
        pooled.look()
    assert pooled.did.index("UnlabelAgent") < pooled.did.index("CreateAgents")
    assert pooled.did[-2:] == ["writes the status", "guards"]


@pytest.mark.parametrize("action", [AddPoolFinalizer, CreateAgents])
def test_what_is_refused_of_the_pool_itself_ends_the_look(action: type) -> None:
    pooled = Pooled(action)
    with pytest.raises(Refused, match="a webhook"):
        pooled.look()
    assert pooled.did[-1] == action.__name__
