"""While a run begins, its pool is looked at briefly: nothing is written that nobody waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from terrahalt_operator.core.actions import CreateClaim
from terrahalt_operator.core.model import Queueing
from terrahalt_operator.core.schedule import BEGINS_WITHIN_S, schedule
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.store import Claims
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, a_pool, a_pool_snapshot, a_task, a_view

KEY = ("pool", "team-a", "default")


def test_why_it_waits_a_task_is_told_at_once_and_anew_when_the_run_has_begun() -> None:
    """A write of it would hold up its own start, if it is the next."""
    first, second = (a_task(uid=f"task-{n}", workspace=f"w{n}") for n in (1, 2))
    pool, woken = a_pool(min_idle=0, max_agents=0), list[object]()
    told = Queueing(position=1, waiting_for="workspace w1, held by task a")
    queueing = {first.uid: told}
    snapshot = a_pool_snapshot(pool=pool, waiting=(first, second), begins_at=NOW)
    reconciler = Reconciler(
        world=cast(Any, SimpleNamespace(queueing=queueing)),
        effects=cast(Any, None),
        worklist=cast(Any, SimpleNamespace(wake=woken.append)),
        leadership=cast(Any, None),
        clock=lambda: NOW,
    )
    brief, later = schedule(snapshot, NOW), schedule(snapshot, NOW + BEGINS_WITHIN_S)
    assert (brief.is_brief, later.is_brief) == (True, False)
    reconciler._note_queueing(snapshot, brief)
    assert (queueing[first.uid], woken) == (told, [("task", second.uid)])
    reconciler._note_queueing(snapshot, later)
    assert queueing == later.queueing
    assert woken == [("task", second.uid), ("task", first.uid)]


def test_the_pools_counts_wait_until_the_run_has_begun_and_no_longer() -> None:
    pool, now, done = a_pool(min_idle=0), [NOW], list[str]()
    idle = a_view(1, session=b.a_session(runs=frozenset()))
    snapshots = [
        a_pool_snapshot(pool=pool, agents=(idle,), waiting=(a_task(),)),
        a_pool_snapshot(pool=pool, agents=(), begins_at=NOW),
    ]
    begins_at = {KEY: NOW}

    async def on_pool(_key: object, _pool: object, action: Any) -> None:
        done.append(type(action).__name__)

    def noting(what: str) -> Any:
        async def note(*_: object) -> None:
            done.append(what)

        return note

    effects = SimpleNamespace(
        on_pool=on_pool,
        clear_doubt=noting("look"),
        write_pool_status=noting("counts"),
        guard_agents=noting("policy"),
    )
    woken: list[float] = []
    reconciler = Reconciler(
        world=cast(
            Any,
            SimpleNamespace(
                pool_snapshot=lambda *_: snapshots[0],
                queueing={},
                begins_at=begins_at,
                tasks=SimpleNamespace(values={}),
                claims=Claims(),
            ),
        ),
        effects=cast(Any, effects),
        worklist=cast(Any, SimpleNamespace(wake_after=lambda _key, wait_s: woken.append(wait_s))),
        leadership=cast(Any, None),
        clock=lambda: now[0],
    )
    asyncio.run(reconciler.work(KEY))
    assert (done, woken) == (["look", CreateClaim.__name__], [BEGINS_WITHIN_S])
    assert begins_at, "it is not over"

    snapshots.pop(0)
    now[0] += BEGINS_WITHIN_S
    asyncio.run(reconciler.work(KEY))
    assert done[2:] == ["look", "counts", "policy"]
    assert not begins_at, "the next run that begins has its own"


def test_what_was_refused_is_not_shown_as_if_it_were_there() -> None:
    """An agent that is being made counts; one that the API server would not take is told of by the next look."""
    done: list[str] = []

    def noting(what: str, *, refused: bool = False) -> Any:
        async def note(*_: object) -> bool:
            done.append(what)
            return refused

        return note

    effects = SimpleNamespace(
        on_pool=noting("agent", refused=True),
        clear_doubt=noting("look"),
        write_pool_status=noting("counts"),
        guard_agents=noting("policy"),
    )
    snapshot = a_pool_snapshot(pool=a_pool(min_idle=1))
    world = SimpleNamespace(pool_snapshot=lambda *_: snapshot, queueing={}, begins_at={})
    reconciler = Reconciler(
        world=cast(Any, world),
        effects=cast(Any, effects),
        worklist=cast(Any, None),
        leadership=cast(Any, None),
        clock=lambda: NOW,
    )
    asyncio.run(reconciler.work(KEY))
    assert done == ["look", "agent"]
