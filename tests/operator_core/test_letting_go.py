"""What of an agent's pod goes once its run is on record, in as few requests as may be."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_operator.core import actions as act
from terrahalt_operator.core import names
from terrahalt_operator.core.model import Agent, Session
from terrahalt_operator.effects import Effects
from tests.operator_core import builders as b

LABELS = {names.TASK_LABEL: None, names.RUN_LABEL: None}


class Recorder:
    """In the place of the API server."""

    def __init__(self, *claimed: str) -> None:
        self.patches: list[dict[str, Any]] = []
        self._claimed = claimed
        self.of_another_shard = False
        self.lists = 0

    async def patch(self, resource: Any, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.patches.append(body["metadata"])
        return body

    async def list(self, resource: Any, namespace: str, labels: str) -> tuple[list[Any], str]:
        assert namespace == "claims"
        self.lists += 1
        return [SimpleNamespace(pod_uid=uid, is_anothers=self.of_another_shard) for uid in self._claimed], "1"


async def patched(agent: Agent, action: Any, *claimed: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    cluster = Recorder(*claimed)
    await carry_out(agent, action, cluster, monkeypatch)
    return cluster.patches


async def carry_out(
    agent: Agent,
    action: Any,
    cluster: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    *,
    released: Collection[str] = (),
    session: Session | None = None,
    looked_at: list[str] | None = None,
) -> None:
    """`looked_at`: gets the pods that are to be looked at again."""
    monkeypatch.setattr("terrahalt_operator.effects.objects.claim", lambda lease: lease)
    world = SimpleNamespace(
        see=lambda *seen: None,
        agents=SimpleNamespace(session=lambda uid: session),
        agent_changed=(looked_at if looked_at is not None else []).append,
        claims_namespace="claims",
        claims=SimpleNamespace(
            put=lambda claim: None,
            is_released=released.__contains__,
            is_anothers=lambda claim: claim.is_anothers,
        ),
        pods=SimpleNamespace(raw={agent.uid: {"metadata": {"finalizers": ["others", names.AGENT_FINALIZER]}}}.get),
    )
    unused = cast(Any, None)
    effects = Effects(
        cluster=cast(Any, cluster),
        world=cast(Any, world),
        worklist=unused,
        namespace="ops",
        operator_ca="CA",
        clock=lambda: 0.0,
        uptime=lambda: 0.0,
        new_run_id=unused,
        tell=unused,
        metrics=b.metrics(),
    )
    await effects.on_pool(("pool", "team-a", "default"), b.a_pool(), action)


OVER = b.an_agent(ended=b.an_end(), run_label=b.RUN, phase="Succeeded")
ALIVE = b.an_agent(run_label=b.RUN)


async def test_the_pod_of_a_run_that_is_over_loses_label_and_finalizer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (patch,) = await patched(OVER, act.UnlabelAgent(OVER), monkeypatch=monkeypatch)
    assert (patch["labels"], patch["finalizers"]) == (LABELS, ["others"])
    assert (patch["resourceVersion"], patch["uid"]) == (OVER.resource_version, OVER.uid)


async def test_one_that_lives_keeps_its_finalizer_when_it_loses_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    (patch,) = await patched(ALIVE, act.UnlabelAgent(ALIVE), monkeypatch=monkeypatch)
    assert patch["labels"] == LABELS
    assert "finalizers" not in patch


async def test_one_whose_end_another_operators_task_has_still_to_see_keeps_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for action in (act.UnlabelAgent(OVER), act.RemoveAgentFinalizer(OVER)):
        assert await patched(OVER, action, OVER.uid, monkeypatch=monkeypatch) == []
        assert len(await patched(OVER, action, "another", monkeypatch=monkeypatch)) == 1


async def test_whoever_released_its_claim_does_not_look_through_all_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    for agent in (OVER, ALIVE):
        cluster = Recorder()
        await carry_out(agent, act.UnlabelAgent(agent), cluster, monkeypatch, released=[b.RUN])
        assert (cluster.lists, len(cluster.patches)) == (0, 1)
        await carry_out(agent, act.UnlabelAgent(agent), cluster, monkeypatch, released=["another"])
        assert (cluster.lists, len(cluster.patches)) == (1, 2)


async def test_a_run_that_another_operator_has_given_it_since_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    session = b.a_session(runs=frozenset({b.RUN, "of-another-operator"}))
    cluster = Recorder(ALIVE.uid)
    await carry_out(ALIVE, act.UnlabelAgent(ALIVE), cluster, monkeypatch, released=[b.RUN], session=session)
    assert (cluster.lists, cluster.patches) == (1, [])


async def test_a_claim_of_another_shard_holds_no_agent_here_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents run tasks of their own namespace alone, so it can't be true."""
    cluster = Recorder(OVER.uid)
    cluster.of_another_shard = True
    await carry_out(OVER, act.UnlabelAgent(OVER), cluster, monkeypatch)
    assert (cluster.lists, len(cluster.patches)) == (1, 1)
