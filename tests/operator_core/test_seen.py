"""What is looked at again once it is seen: what somebody may have to act upon, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_operator.core import names
from terrahalt_operator.core.actions import UnlabelAgent
from terrahalt_operator.errors import Conflict
from tests.operator_core.test_letting_go import OVER, Recorder, carry_out
from tests.operator_core.test_standby import PLACE, Standby, an_agent, done, server
from tests.simulation.api_server import ApiServer, Json

__all__ = ["server"]

POOL = ("pool", PLACE, "default")
SEEN = {"status": {"agents": 1}}


@pytest.fixture
def leader(server: ApiServer) -> Standby:
    leader = Standby(server)
    done(leader.world.lead())
    leader.woken.clear()
    return leader


def changed(server: ApiServer, plural: str, name: str, patch: Json) -> Json:
    return server.change(plural, PLACE, name, patch, subresource="status" if "status" in patch else "")


def test_a_pool_whose_status_the_operator_has_written_is_not_looked_at_for_that(
    server: ApiServer, leader: Standby
) -> None:
    leader.world.see("agentpools", False, changed(server, "agentpools", "default", SEEN), is_own=True)
    leader.watches()
    assert leader.woken == []
    (pool,) = leader.world.pools.values.values()
    assert pool.status == SEEN["status"]


def test_what_came_with_the_answer_to_that_write_is_looked_at(server: ApiServer, leader: Standby) -> None:
    """Else nobody would: what the watch tells later is no news."""
    changed(server, "agentpools", "default", {"spec": {"minIdle": 2}})
    leader.world.see("agentpools", False, changed(server, "agentpools", "default", SEEN), is_own=True)
    leader.watches()
    assert leader.woken == [POOL]


def test_a_status_that_somebody_else_has_written_is_looked_at(server: ApiServer, leader: Standby) -> None:
    changed(server, "agentpools", "default", SEEN)
    leader.watches()
    assert leader.woken == [POOL]


def test_all_pools_are_looked_at_now_and_then(leader: Standby) -> None:
    """Not everything that one waits for is told."""
    done(leader.world.relist())
    assert leader.woken == [POOL]


def test_whoever_waits_behind_a_task_of_a_pool_that_goes_is_looked_at_in_whatever_namespace(
    server: ApiServer, leader: Standby
) -> None:
    backend = {"type": "s3", "config": {"bucket": "states", "key": "network"}}
    spec = {"action": "Apply", "workspace": "network", "source": {"inline": {"main.tf": ""}}, "backend": backend}
    for namespace in (PLACE, "team-b"):
        metadata = {"name": "network", "finalizers": [names.TASK_FINALIZER]}
        server.make("terraformtasks", namespace, {"metadata": metadata, "spec": spec})
    server.make("agentpools", "team-b", {"metadata": {"name": "default"}, "spec": {}})
    leader.watches()
    leader.woken.clear()
    server.take_away("agentpools", "team-b", "default")
    leader.watches()
    assert POOL in leader.woken


def test_of_a_pod_only_what_is_asked_for_is_looked_at(server: ApiServer, leader: Standby) -> None:
    an_agent(server)
    leader.watches()
    leader.woken.clear()
    changed(server, "pods", "agent", {"status": {"qosClass": "Burstable"}})
    leader.watches()
    assert leader.woken == []
    changed(server, "pods", "agent", {"status": {"phase": "Failed"}})
    leader.watches()
    assert leader.woken == [POOL]


async def test_a_pod_that_has_changed_since_it_was_decided_upon_is_decided_upon_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where all that has changed is its version."""

    class Changed(Recorder):
        async def patch(self, *_: Any) -> dict[str, Any]:
            raise Conflict("changed")

        async def get(self, *_: Any) -> dict[str, Any]:
            return {"metadata": {"uid": OVER.uid}}

    looked_at: list[str] = []
    await carry_out(OVER, UnlabelAgent(OVER), Changed(), monkeypatch, looked_at=looked_at)
    assert looked_at == [OVER.uid]
