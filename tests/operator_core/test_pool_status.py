"""What a pool's status says of a refresh of its credentials, and that it says nothing where nobody asked for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from terrahalt_operator.core.credentials import Refresh
from terrahalt_operator.core.model import Pool
from terrahalt_operator.core.schedule import PoolDecision
from terrahalt_operator.effects import Effects
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, a_pool
from tests.operator_core.merge import apply_merge_patch

KEY = ("pool", "team-a", "default")


def a_refresh(**changes: Any) -> Refresh:
    plain: dict[str, Any] = {"asked": "today", "requested": 3, "acknowledged": 3, "missing": "", "has_problem": False}
    return Refresh(**(plain | changes))


def written(
    pool: Pool, refreshing: Refresh | None, *, between: Mapping[str, Any] = {}, told: list[bool] | None = None
) -> dict[str, Any]:
    """The status as it is afterwards, without what somebody has written `between`; `told`: gets whether the answer is
    what was written."""
    patches: list[dict[str, Any]] = []

    async def patch(_: object, namespace: str, name: str, body: dict[str, Any], *, subresource: str) -> dict[str, Any]:
        assert (namespace, name, subresource) == ("team-a", "default", "status")
        patches.append(body)
        return dict(apply_merge_patch({"status": pool.status}, body)) | dict(between)

    def see(*_: object, is_own: bool) -> None:
        if told is not None:
            told.append(is_own)

    cluster = SimpleNamespace(patch=patch)
    unused: dict[str, Any] = dict.fromkeys(("worklist", "new_run_id", "tell"))
    effects = Effects(
        cluster=cast(Any, cluster),
        world=cast(Any, SimpleNamespace(see=see)),
        namespace="ops",
        operator_ca="CA",
        clock=lambda: NOW,
        uptime=lambda: NOW,
        metrics=b.metrics(),
        **unused,
    )
    asyncio.run(effects.write_pool_status(cast(Any, KEY), pool, PoolDecision(), refreshing))
    return dict(apply_merge_patch({"status": pool.status}, patches[0])["status"]) if patches else pool.status


def condition(status: dict[str, Any]) -> dict[str, Any]:
    (found,) = [c for c in status["conditions"] if c["type"] == "CredentialsRefreshed"]
    return dict(found)


def test_a_refresh_is_counted_beside_the_value_that_the_counts_are_of() -> None:
    status = written(a_pool(), a_refresh(acknowledged=2, missing="agent a: asked"))
    assert status["credentials"] == {"refresh": "today", "requested": 3, "acknowledged": 2}
    shown = condition(status)
    assert (shown["status"], shown["reason"], shown["message"]) == ("False", "Asked", "agent a: asked")


def test_the_condition_says_why_it_is_not_done_and_when_it_was() -> None:
    problem = condition(written(a_pool(), a_refresh(acknowledged=2, missing="agent a: gone", has_problem=True)))
    assert (problem["status"], problem["reason"], problem["message"]) == ("False", "NotAcknowledged", "agent a: gone")
    done = written(a_pool(), a_refresh())
    assert condition(done)["status"] == "True"
    assert condition(done)["reason"] == "Acknowledged"
    earlier = {**condition(done), "lastTransitionTime": b.at(-60)}
    again = written(a_pool(status={"conditions": [earlier]}), a_refresh(asked="tomorrow"))
    assert condition(again)["lastTransitionTime"] == b.at(-60)


def test_without_a_refresh_nothing_of_one_is_said_any_more() -> None:
    status = written(a_pool(status=written(a_pool(), a_refresh())), None)
    assert "credentials" not in status
    assert [c["type"] for c in status["conditions"]] == ["Ready"]


def test_the_answer_is_told_to_be_as_written_only_where_it_is() -> None:
    """Somebody may have written something else of it in between: that is looked at."""
    for between, is_own in (({}, True), ({"status": {"agents": 9}}, False)):
        told: list[bool] = []
        written(a_pool(), None, between=between, told=told)
        assert told == [is_own]
