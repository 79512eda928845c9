"""Of several namespaces one may be deleted, and the operator's Role in it: the others go on without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_operator.adapters.cluster import Resource
from terrahalt_operator.core import names
from terrahalt_operator.errors import Refused
from terrahalt_operator.world import World
from tests.operator_core.test_standby import Dialled, done
from tests.simulation.api_server import ApiServer, Door, Json

HERE, DELETED = "team-a", "team-b"
BUDGET = {"metadata": {"name": "b", "labels": {names.NAME_LABEL: names.BUDGET_NAME, names.POOL_LABEL: "default"}}}


class Half(Door):
    """It may list nothing in some namespaces, or (None) nothing everywhere."""

    def __init__(self, server: ApiServer, refused: set[str | None]) -> None:
        super().__init__(server, "operator")
        self.refused = refused

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> tuple[list[Json], str]:
        if namespace in self.refused:
            raise Refused(f"GET {resource[1]} of {namespace}: 403")
        return await super().list(resource, namespace, labels)


@pytest.fixture
def server() -> ApiServer:
    server = ApiServer(lambda: 0.0, lambda *_: None)
    for namespace in (HERE, DELETED):
        server.make("agentpools", namespace, {"metadata": {"name": "default"}, "spec": {}})
        server.make("poddisruptionbudgets", namespace, BUDGET)
        task = {"action": "Plan", "workspace": "w", "source": {"inline": {"main.tf": ""}}}
        server.make("terraformtasks", namespace, {"metadata": {"name": "first"}, "spec": task})
    return server


def a_world(door: Door, watched: tuple[str, ...]) -> World:
    return World(
        cluster=cast(Any, door),
        agents=lambda _: cast(Any, Dialled()),
        trust=cast(Any, SimpleNamespace(report_secret=b"secret", ca_pem="CA")),
        leadership=cast(Any, SimpleNamespace(epoch=1)),
        claims_namespace="ops",
        watched=watched,
        agent_images={},
        clock=lambda: 0.0,
        uptime=lambda: 0.0,
        wake=lambda _: None,
    )


def seen(world: World) -> list[tuple[str, str]]:
    return sorted((task.namespace, task.name) for task in world.tasks.values.values())


def cancel(server: ApiServer, namespace: str) -> None:
    server.change("terraformtasks", namespace, "first", {"spec": {"cancel": True}})


def test_one_that_may_not_be_listed_keeps_nobody_from_leading_the_others(server: ApiServer) -> None:
    door = Half(server, {DELETED})
    world = a_world(door, (DELETED, HERE))
    world.stand_by()
    done(world.lead())
    assert seen(world) == [(HERE, "first")]
    assert world.refused == {DELETED}


def test_a_cancel_is_seen_by_a_list_while_another_namespace_is_deleted(server: ApiServer) -> None:
    door = Half(server, set())
    world = a_world(door, (DELETED, HERE))
    done(world.relist())
    door.refused.add(DELETED)
    cancel(server, HERE)
    done(world.relist())
    tasks = {task.namespace: task for task in world.tasks.values.values()}
    assert tasks[HERE].spec.cancel
    assert not tasks[DELETED].spec.cancel
    assert world.budgets == {("pool", HERE, "default"), ("pool", DELETED, "default")}


def test_one_that_can_be_listed_again_is_watched_again(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    door = Half(server, {DELETED})
    world = a_world(door, (DELETED, HERE))
    done(world.relist())
    done(world.relist())
    door.refused.clear()
    done(world.relist())
    assert seen(world) == [(HERE, "first"), (DELETED, "first")]
    assert world.refused == set()
    told = [message for message in caplog.messages if DELETED in message]
    assert [message.partition(":")[0] for message in told] == [
        f"namespace {DELETED} is not watched until it can be listed again",
        f"namespace {DELETED} can be listed again",
    ]


@pytest.mark.parametrize(("watched", "refused"), [((HERE, DELETED), {HERE, DELETED}), ((HERE,), {HERE}), ((), {None})])
def test_who_may_list_nothing_at_all_does_not_lead(
    server: ApiServer, watched: tuple[str, ...], refused: set[str | None]
) -> None:
    world = a_world(Half(server, refused), watched)
    with pytest.raises(Refused, match="403"):
        done(world.lead())
