"""`terrahalt.dev/refresh-credentials` of a pool: which agents are asked, and which count as having done it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.core.actions import CreateAgents, Send
from terrahalt_operator.core.credentials import MAX_SHOWN_CHARS, Refresh, refresh, refresh_id
from terrahalt_operator.core.pool_snapshot import AgentView
from terrahalt_operator.errors import Unreachable
from terrahalt_operator.reconciler import Reconciler
from terrahalt_protocol.messages import RefreshCredentials
from tests.operator_core import builders as b
from tests.operator_core.builders import a_busy, a_pool, a_pool_snapshot, a_view, an_idle

ASKED = "2026-01-02 the token of the cloud was renewed"
WANTED = refresh_id(ASKED)


def seen(*agents: AgentView, asked: str = ASKED) -> Refresh:
    found = refresh(a_pool_snapshot(pool=a_pool(refresh_credentials=asked), agents=agents))
    assert found is not None
    return found


def with_session(view: AgentView, **changes: Any) -> AgentView:
    assert view.session is not None
    return replace(view, session=replace(view.session, **changes))


def asked(number: int, value: str = ASKED) -> Send:
    return Send(f"pod-{number}", RefreshCredentials(epoch=b.EPOCH, refresh=refresh_id(value)))


def test_nothing_is_asked_where_nobody_wants_it() -> None:
    assert refresh(a_pool_snapshot(agents=(a_busy(1),))) is None
    assert refresh(a_pool_snapshot(pool=None, agents=(a_busy(1),))) is None


def test_each_connected_agent_is_asked_once_on_its_connection() -> None:
    found = seen(a_busy(1), an_idle(2))
    assert found.actions == (asked(1), asked(2))
    assert (found.requested, found.acknowledged, found.has_problem) == (2, 0, False)
    again = seen(*(with_session(v, sent_refresh=WANTED) for v in (a_busy(1), an_idle(2))))
    assert again.actions == ()
    assert again.missing == "agent default-agent-1: asked; agent default-agent-2: asked"


def test_who_has_carried_it_out_is_counted_and_not_asked_again_by_any_operator() -> None:
    """What an agent has done its Hello says, so that a restarted operator knows it."""
    found = seen(with_session(a_busy(1), refreshed=WANTED, sent_refresh=""), with_session(an_idle(2), refreshed="r0"))
    assert found.actions == (asked(2),)
    assert (found.requested, found.acknowledged) == (2, 1)
    assert seen(with_session(a_busy(1), refreshed=WANTED)).missing == ""


def test_another_value_is_another_refresh() -> None:
    view = with_session(a_busy(1), refreshed=WANTED, sent_refresh=WANTED)
    found = seen(view, asked="again")
    assert (found.asked, found.actions, found.acknowledged) == ("again", (asked(1, "again"),), 0)


def test_an_agent_that_is_too_old_is_not_asked_and_counts_as_one_that_has_not_done_it() -> None:
    found = seen(with_session(a_busy(1), refreshed=None))
    assert (found.actions, found.requested, found.acknowledged, found.has_problem) == ((), 1, 0, True)
    assert found.missing == "agent default-agent-1: its image is too old to read them anew"


def test_an_agent_with_a_run_that_is_not_connected_is_waited_for_and_one_that_starts_is_not() -> None:
    found = seen(replace(a_busy(1), session=None), a_view(2))
    assert (found.actions, found.requested, found.acknowledged) == ((), 1, 0)
    assert (found.missing, found.has_problem) == ("agent default-agent-1: not connected", True)


def test_neither_the_dead_nor_strangers_are_asked() -> None:
    over = replace(a_busy(1), agent=replace(a_busy(1).agent, ended=b.an_end()))
    stranger = replace(an_idle(2), is_ours=False)
    assert seen(over, stranger).actions == ()
    assert seen(over, stranger).requested == 0


def test_why_an_agent_could_not_read_them_is_told() -> None:
    view = with_session(a_busy(1), sent_refresh=WANTED, refresh_problem="envFrom: Secret aws was not found")
    found = seen(view)
    assert (found.actions, found.acknowledged, found.has_problem) == ((), 0, True)
    assert found.missing == "agent default-agent-1: envFrom: Secret aws was not found"


def test_what_hindered_the_refresh_before_is_not_told_of_the_next_one() -> None:
    view = with_session(a_busy(1), sent_refresh=WANTED, refresh_problem="envFrom: Secret aws was not found")
    found = seen(view, asked="again")
    assert (found.missing, found.has_problem) == ("agent default-agent-1: asked", False)


def test_of_many_that_have_not_the_first_are_named() -> None:
    found = seen(*(with_session(a_busy(n), sent_refresh=WANTED) for n in range(1, 8)))
    assert found.missing.count("asked") == 5
    assert found.missing.endswith("; and 2 more")


def test_what_a_person_writes_may_be_long_and_goes_to_no_agent() -> None:
    found = seen(a_busy(1), asked="x" * 100_000)
    assert found.asked == "x" * MAX_SHOWN_CHARS
    assert len(msgspec.json.encode(found.actions[0].command)) < 200


def test_a_refresh_goes_out_before_anything_that_the_api_server_may_fail_at() -> None:
    carried_out: list[Any] = []
    snapshot = a_pool_snapshot(pool=a_pool(refresh_credentials=ASKED, min_idle=2), agents=(a_busy(1),))

    async def on_pool(_key: object, _pool: object, action: Any) -> None:
        carried_out.append(action)
        if isinstance(action, CreateAgents):
            raise Unreachable("a webhook answers nothing")

    async def clear_doubt(_key: object) -> None:
        return

    reconciler = Reconciler(
        world=cast(
            Any,
            SimpleNamespace(
                pool_snapshot=lambda *_: snapshot, queueing={}, begins_at={}, tasks=SimpleNamespace(values={})
            ),
        ),
        effects=cast(Any, SimpleNamespace(on_pool=on_pool, clear_doubt=clear_doubt)),
        worklist=cast(Any, None),
        leadership=cast(Any, None),
        clock=lambda: b.NOW,
    )
    with pytest.raises(Unreachable):
        asyncio.run(reconciler.work(("pool", "team-a", "default")))
    assert asked(1) in carried_out
