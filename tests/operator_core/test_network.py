"""When a pool's NetworkPolicy is written; what it means is in tests/network."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from msgspec.structs import replace

from terrahalt_operator.adapters.cluster import NETWORK_POLICIES, Resource
from terrahalt_operator.core import actions as act
from terrahalt_operator.core import network, pod
from terrahalt_operator.core.model import Agent, Pool
from terrahalt_operator.effects import ANCHORED_S, Effects
from terrahalt_operator.errors import Refused, Unreachable
from tests.operator_core import builders as b
from tests.operator_core.test_cluster import api_server

KEY = ("pool", "team-a", "default")


class Recorder:
    """In the place of the API server; `answers` is raised once, where a policy is applied."""

    def __init__(self) -> None:
        self.looks = 0
        self.applied: list[dict[str, Any]] = []
        self.created: list[str] = []
        self.refuses: Exception | None = None
        self.while_looking: Callable[[], None] = lambda: None

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        self.looks += 1
        self.while_looking()
        return {"metadata": {"name": name, "uid": "anchor-uid"}}

    async def apply(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        assert resource == NETWORK_POLICIES
        if self.refuses:
            raise self.refuses
        self.applied.append(body)
        return body

    async def create(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(f"{resource[1]} after {len(self.applied)} policies")
        return {**body, "metadata": {**body["metadata"], "name": "agent", "uid": "uid"}}

    async def patch(self, resource: Resource, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return body


SCRAPER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}


def effects_on(
    cluster: Recorder,
    *,
    is_ours: bool = True,
    scraper: dict[str, Any] | None = None,
    uptime: list[float] | None = None,
    lost: set[tuple[str, ...]] | None = None,
) -> Effects:
    owners = {b.POD_UID: "anchor-uid", "orphan": "anchor-that-is-gone"}
    owned = {
        uid: {"metadata": {"ownerReferences": [pod.anchor_reference("default", anchor)]}}
        for uid, anchor in owners.items()
    }
    world = SimpleNamespace(
        image=lambda pool: "agent:1",
        proof=lambda uid: "proof",
        see=lambda *seen: None,
        is_ours=lambda agent: is_ours,
        refused_agents={},
        lost=set() if lost is None else lost,
        traces=set(),
        pods=SimpleNamespace(raw=owned.get),
    )
    return Effects(
        cluster=cast(Any, cluster),
        world=cast(Any, world),
        worklist=cast(Any, SimpleNamespace(wake=lambda key: None)),
        namespace="ops",
        operator_ca="CA",
        clock=lambda: 0.0,
        uptime=lambda: uptime[0] if uptime else 0.0,
        new_run_id=lambda: "run",
        tell=lambda *said: None,
        metrics=b.metrics(),
        scraper=scraper,
    )


def policy(pool: Pool) -> dict[str, Any]:
    return network.policy(pool, operator_namespace="ops", anchor_uid="anchor-uid")


async def test_the_policy_is_there_before_the_pods_that_it_is_for() -> None:
    cluster, uptime, lost = Recorder(), [0.0], set[tuple[str, ...]]()
    effects = effects_on(cluster, uptime=uptime, lost=lost)
    made, changed = b.a_pool(), b.a_pool(allow_metadata=("169.254.169.254/32",), generation=2)

    async def makes(pool: Pool, *, after_policies: int) -> None:
        await effects.on_pool(KEY, pool, act.CreateAgents(1))
        assert (cluster.created[-1], cluster.looks) == (f"pods after {after_policies} policies", after_policies)

    await makes(made, after_policies=1)
    uptime[0] = ANCHORED_S - 1
    await makes(made, after_policies=1)
    uptime[0] = ANCHORED_S  # somebody may have deleted it meanwhile
    await makes(made, after_policies=2)
    await makes(changed, after_policies=3)
    assert cluster.applied == [policy(made), policy(made), policy(changed)]

    lost.add(KEY)  # an agent was deleted before its end: its owner may be gone
    await makes(changed, after_policies=4)
    assert not lost
    await makes(changed, after_policies=4)


async def test_an_anchor_that_could_not_be_looked_for_is_looked_for_again() -> None:
    cluster, lost = Recorder(), set[tuple[str, ...]]()
    effects = effects_on(cluster, lost=lost)
    await effects.on_pool(KEY, b.a_pool(), act.CreateAgents(1))
    lost.add(KEY)
    cluster.refuses = Unreachable("away")
    with pytest.raises(Unreachable):
        await effects.on_pool(KEY, b.a_pool(), act.CreateAgents(1))
    assert (len(cluster.created), cluster.looks) == (1, 2)
    cluster.refuses = None
    await effects.on_pool(KEY, b.a_pool(), act.CreateAgents(1))
    assert (cluster.created[1:], cluster.looks) == (["pods after 2 policies"], 3)


async def test_an_agent_that_is_deleted_while_the_anchor_is_looked_for_has_it_looked_for_again() -> None:
    cluster, lost = Recorder(), set[tuple[str, ...]]({KEY})
    effects = effects_on(cluster, lost=lost)
    cluster.while_looking = lambda: lost.add(KEY)
    for looks in (1, 2):
        await effects.on_pool(KEY, b.a_pool(), act.CreateAgents(1))
        assert cluster.looks == looks


async def test_agents_are_guarded_with_a_door_for_whoever_scrapes_them() -> None:
    cluster = Recorder()
    await effects_on(cluster, scraper=SCRAPER).guard_agents(KEY, b.a_pool(), [b.an_agent()])
    (applied,) = cluster.applied
    to_scrape = {"from": [SCRAPER], "ports": [{"protocol": "TCP", "port": pod.HEALTH_PORT}]}
    assert applied["spec"]["ingress"] == [*policy(b.a_pool())["spec"]["ingress"], to_scrape]


async def test_no_agent_is_made_where_the_policy_is_refused() -> None:
    cluster = Recorder()
    cluster.refuses = Refused("networkpolicies: 403 forbidden")
    assert await effects_on(cluster).on_pool(KEY, b.a_pool(), act.CreateAgents(1)), "it is to be decided upon anew"
    assert cluster.created == []


@pytest.mark.parametrize("refusal", [None, Refused("networkpolicies: 403 forbidden")])
async def test_from_its_anchor_on_a_pool_has_something_to_be_removed(refusal: Refused | None) -> None:
    """It may be deleted before the next list tells of its policy, or have got none."""
    cluster = Recorder()
    cluster.refuses = refusal
    effects = effects_on(cluster)
    await effects.on_pool(KEY, b.a_pool(), act.CreateAgents(1))
    assert effects._world.traces == {KEY}


@pytest.mark.parametrize("field", sorted(set(Pool.__struct_fields__) - {"namespace", "name", "allow_metadata"}))
def test_the_policy_depends_on_nothing_that_would_not_have_it_written_anew(field: str) -> None:
    assert policy(replace(b.a_pool(), **{field: object()})) == policy(b.a_pool())


async def test_agents_that_are_there_get_the_pools_new_policy_once() -> None:
    cluster = Recorder()
    effects, agents = effects_on(cluster), [b.an_agent()]
    larger = b.a_pool(max_agents=11, generation=2)
    opened = b.a_pool(allow_metadata=("169.254.169.254/32",), generation=3)
    for pool in (b.a_pool(), b.a_pool(), larger, opened, opened):
        await effects.guard_agents(KEY, pool, agents)
    assert cluster.applied == [policy(b.a_pool()), policy(opened)]


@pytest.mark.parametrize(
    "orphan", [b.an_agent(uid="orphan", is_deleting=True), b.an_agent(uid="orphan", ended=b.an_end())]
)
async def test_the_policy_is_not_owned_by_an_anchor_that_somebody_has_deleted(orphan: Agent) -> None:
    """It would be collected at once; the pods that it owned go, and may take their time."""
    cluster = Recorder()
    await effects_on(cluster).guard_agents(KEY, b.a_pool(), [orphan, b.an_agent()])
    assert cluster.applied == [policy(b.a_pool())]
    await effects_on(cluster).guard_agents(KEY, b.a_pool(), [orphan])
    assert len(cluster.applied) == 1


@pytest.mark.parametrize(("agents", "is_ours"), [([], True), ([b.an_agent()], False)])
async def test_a_pool_without_agents_of_ours_has_nobody_to_guard(agents: list[Agent], is_ours: bool) -> None:
    cluster = Recorder()
    await effects_on(cluster, is_ours=is_ours).guard_agents(KEY, b.a_pool(), agents)
    assert cluster.applied == []


async def test_it_is_applied_over_whatever_somebody_made_of_it() -> None:
    asked: list[tuple[str, str, dict[str, str], str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        asked.append((request.method, request.path, dict(request.query), request.content_type, body))
        return web.json_response(body)

    async with api_server(answer) as cluster:
        await cluster.apply(NETWORK_POLICIES, "team-a", policy(b.a_pool()))
    path = "/apis/networking.k8s.io/v1/namespaces/team-a/networkpolicies/terrahalt-agents-default"
    query = {"fieldManager": "terrahalt-operator", "force": "true"}
    assert asked == [("PATCH", path, query, "application/apply-patch+yaml", policy(b.a_pool()))]
