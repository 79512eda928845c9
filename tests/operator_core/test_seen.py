"""What is looked at again once it is seen: what somebody may have to act upon, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from terrahalt_operator.core import names
from terrahalt_operator.core.actions import UnlabelAgent
from terrahalt_operator.errors import Conflict
from tests.operator_core.test_letting_go import OVER, Recorder, carry_out
from tests.operator_core.test_standby import PLACE, Standby, a_claim, a_known_task, a_task, an_agent, done, server
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
    waiting = {"name": "agent", "state": {"waiting": {"reason": "ErrImagePull"}}}
    changed(server, "pods", "agent", {"status": {"containerStatuses": [waiting]}})
    leader.watches()
    assert leader.woken == [POOL]


def test_an_agent_that_starts_is_dialled_and_its_pool_looked_at_once_it_is_connected(
    server: ApiServer, leader: Standby
) -> None:
    labels = {"app.kubernetes.io/name": "terrahalt-agent", "terrahalt.dev/pool": "default"}
    pod = server.make("pods", PLACE, {"metadata": {"name": "agent", "labels": labels}, "spec": {}})
    proof = {names.PROOF_ANNOTATION: leader.world.proof(pod["metadata"]["uid"])}
    changed(server, "pods", "agent", {"metadata": {"annotations": proof}})
    leader.watches()
    leader.woken.clear()
    running = {"name": "agent", "containerID": "containerd://1", "state": {"running": {}}}
    status = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [running]}
    changed(server, "pods", "agent", {"status": status})
    leader.watches()
    assert (leader.dialled.uids, leader.woken) == ([pod["metadata"]["uid"]], [])


@pytest.mark.parametrize("how", ["connected", "deleted", "ended"])
def test_of_an_agent_that_does_not_start_any_more_each_change_is_looked_at(
    server: ApiServer, leader: Standby, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    an_agent(server)
    changed(server, "pods", "agent", {"metadata": {"finalizers": [names.AGENT_FINALIZER]}})
    state: Json = {"running": {}}
    match how:
        case "connected":
            monkeypatch.setattr(leader.dialled, "session", lambda uid: object())
        case "deleted":
            server.take_away("pods", PLACE, "agent")
        case "ended":
            state = {
                "terminated": {"exitCode": 0, "containerID": "containerd://1", "finishedAt": "2026-01-01T00:00:00Z"}
            }
    containers = [{"name": "agent", "containerID": "containerd://1", "state": state}]
    changed(server, "pods", "agent", {"status": {"containerStatuses": containers}})
    leader.watches()
    leader.woken.clear()
    changed(server, "pods", "agent", {"status": {"phase": "Failed"}})
    leader.watches()
    assert leader.woken == [POOL]


def test_a_list_brings_what_is_not_known_alone(
    server: ApiServer, leader: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, task = an_agent(server), a_known_task(server, "network")
    seen: list[str] = []
    see = leader.world.see

    def noting(plural: str, is_gone: bool, obj: Json) -> None:
        seen.append(obj["metadata"]["uid"])
        see(plural, is_gone, obj)

    monkeypatch.setattr(leader.world, "see", noting)
    done(leader.world.relist())
    assert sorted(seen) == sorted(obj["metadata"]["uid"] for obj in (pod, task))
    seen.clear()
    done(leader.world.relist())
    assert seen == []
    changed(server, "terraformtasks", "network", {"spec": {"priority": 7}})
    done(leader.world.relist())
    assert seen == [task["metadata"]["uid"]]


def test_a_task_is_looked_at_where_a_list_says_something_else_of_its_claim(server: ApiServer, leader: Standby) -> None:
    """No watch tells of claims: another operator may have made it."""
    task = a_known_task(server, "network")
    claim = a_claim(server, task, an_agent(server))
    the_task, the_claim = ("task", task["metadata"]["uid"]), ("claim", claim.name)

    def woken_by_a_list() -> set[tuple[str, ...]]:
        leader.woken.clear()
        done(leader.world.relist())
        return set(leader.woken)

    assert {the_task, the_claim} <= woken_by_a_list()
    assert woken_by_a_list() == {the_claim, POOL}
    other = {"metadata": {"annotations": {"terrahalt.dev/pod-uid": "another"}}}
    server.change("leases", "ops", claim.name, other)
    assert woken_by_a_list() == {the_task, the_claim, POOL}
    assert leader.world.claims.by_name[claim.name].pod_uid == "another"


@pytest.mark.parametrize(("run", "woken"), [("run-1", []), ("another", [POOL])])
def test_a_label_that_says_what_a_pods_claim_says_is_no_news(
    server: ApiServer, leader: Standby, run: str, woken: list[tuple[str, ...]]
) -> None:
    pod, task = an_agent(server), a_task(server, "network")
    leader.watches()
    leader.world.claims.put(a_claim(server, task, pod))
    leader.woken.clear()
    labels = {names.RUN_LABEL: run, names.TASK_LABEL: task["metadata"]["name"], names.LAST_TASK_LABEL: "any"}
    changed(server, "pods", "agent", {"metadata": {"labels": labels}})
    leader.watches()
    assert [key for key in leader.woken if key == POOL] == woken


def test_whose_agent_was_deleted_before_its_end_may_have_lost_what_owns_it(server: ApiServer, leader: Standby) -> None:
    ended = {"terminated": {"exitCode": 0, "containerID": "containerd://1", "finishedAt": "2026-01-01T00:00:00Z"}}
    for number, (state, lost) in enumerate(((ended, set()), ({"running": {}}, {POOL}))):
        for is_kept in (True, False):
            name = f"agent-{number}-{is_kept}"
            an_agent(server, name)
            containers = [{"name": "agent", "containerID": "containerd://1", "state": state}]
            changed(server, "pods", name, {"status": {"containerStatuses": containers}})
            if is_kept:
                changed(server, "pods", name, {"metadata": {"finalizers": [names.AGENT_FINALIZER]}})
            leader.watches()
            leader.world.lost.clear()
            server.take_away("pods", PLACE, name)
            leader.watches()
            assert leader.world.lost == lost, name


def test_a_finalizer_that_is_off_is_no_news_and_one_that_is_on_is(server: ApiServer, leader: Standby) -> None:
    an_agent(server)
    leader.watches()
    for finalizers, woken in (([names.AGENT_FINALIZER], [POOL]), ([], [])):
        leader.woken.clear()
        changed(server, "pods", "agent", {"metadata": {"finalizers": finalizers}})
        leader.watches()
        assert leader.woken == woken


def test_where_a_task_waits_its_pool_need_not_be_told_and_that_it_waits_no_more_it_is(
    server: ApiServer, leader: Standby
) -> None:
    task = a_known_task(server, "network")
    leader.watches()
    for change, tells in (
        ({"status": {"phase": "Queued", "queue": {"position": 3, "waitingFor": "an agent"}}}, False),
        ({"metadata": {"labels": {"team": "a"}}}, False),
        ({"spec": {"priority": 7}}, True),
        ({"status": {"phase": "Failed", "finishedAt": "2026-01-01T00:00:00Z"}}, True),
    ):
        leader.woken.clear()
        changed(server, "terraformtasks", task["metadata"]["name"], change)
        leader.watches()
        assert (POOL in leader.woken, ("task", task["metadata"]["uid"]) in leader.woken) == (tells, True), change


def test_the_end_of_a_run_looks_at_its_agents_pool_and_at_those_that_wait_for_its_state_alone(
    server: ApiServer, leader: Standby
) -> None:
    pod, task = an_agent(server), a_task(server, "network")
    server.make("agentpools", PLACE, {"metadata": {"name": "another"}, "spec": {}})
    leader.watches()
    claim = a_claim(server, task, pod)
    leader.world.claims.put(claim)
    leader.woken.clear()
    leader.world.claims.release(claim)
    leader.world.wake_state(claim)
    assert [key for key in leader.woken if key[0] == "pool"] == [POOL]


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


def out_of_sight(server: ApiServer, pod: Json) -> Json:
    """As a watch with a selector tells of a pod whose label somebody has taken off: it has gone at that version."""
    return changed(server, "pods", pod["metadata"]["name"], {"metadata": {"labels": {names.NAME_LABEL: None}}})


def back(server: ApiServer, pod: Json) -> Json:
    label = {names.NAME_LABEL: names.AGENT_NAME}
    return changed(server, "pods", pod["metadata"]["name"], {"metadata": {"labels": label}})


def test_an_agent_whose_label_somebody_took_off_and_put_back_is_known_and_dialled_again(
    server: ApiServer, leader: Standby
) -> None:
    task, pod = a_known_task(server, "network"), an_agent(server)
    leader.world.claims.put(a_claim(server, task, pod))
    leader.watches()
    uid = pod["metadata"]["uid"]
    leader.world.see("pods", True, out_of_sight(server, pod))
    assert uid not in leader.world.pods.values
    leader.dialled.uids.clear()
    leader.world.see("pods", False, back(server, pod))
    assert leader.dialled.uids == [uid]
    assert uid in leader.world.pods.values


def test_a_late_word_of_its_absence_does_not_take_it_away_again(
    server: ApiServer, leader: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = an_agent(server)
    leader.watches()
    gone = out_of_sight(server, pod)
    back(server, pod)
    done(leader.world.relist())
    dropped: list[str] = []
    monkeypatch.setattr(leader.dialled, "drop", dropped.append)
    leader.world.see("pods", True, gone)
    assert pod["metadata"]["uid"] in leader.world.pods.values
    assert dropped == []


def test_what_a_list_did_not_have_is_brought_back_by_nothing_from_before_that_list(
    server: ApiServer, leader: Standby
) -> None:
    pod = an_agent(server)
    leader.watches()
    late = changed(server, "pods", "agent", {"metadata": {"labels": {"seen": "late"}}})
    server.take_away("pods", PLACE, "agent")
    done(leader.world.relist())
    leader.world.see("pods", False, late)
    assert pod["metadata"]["uid"] not in leader.world.pods.values


def test_what_an_agent_told_of_its_end_is_kept_for_its_claim_when_its_pod_goes(
    server: ApiServer, leader: Standby
) -> None:
    task, claimed, free = a_known_task(server, "network"), an_agent(server), an_agent(server, "free")
    claim = a_claim(server, task, claimed)
    leader.world.claims.put(claim)
    leader.watches()
    for pod in (claimed, free):
        leader.world.see("pods", True, pod)
    assert leader.dialled.forgotten == [free["metadata"]["uid"]]
    leader.world.claims.release(claim)
    leader.world.wake_state(claim)
    assert leader.dialled.forgotten[1:] == [claimed["metadata"]["uid"]]


@pytest.mark.parametrize("is_another_run", [True, False])
def test_of_a_task_that_is_gone_only_the_claim_that_has_a_lease_is_held(
    server: ApiServer, leader: Standby, is_another_run: bool
) -> None:
    """What was known from its status alone, beside the Lease of another run for that state, is nobody's any more."""
    task, pod, other = a_known_task(server, "network"), an_agent(server), an_agent(server, "other")
    leader.watches()
    leased = a_claim(server, task, pod)
    told = replace(leased, resource_version="")
    if is_another_run:
        told = replace(told, run_id="of-the-status", pod_uid=other["metadata"]["uid"])
    leader.world.claims.put(leased)
    leader.world.claims.put(told)
    leader.woken.clear()
    leader.world.see("terraformtasks", True, {"metadata": {"uid": task["metadata"]["uid"]}})
    claims = leader.world.claims
    assert claims.by_name == {leased.name: leased}
    assert list(claims.by_pod) == [pod["metadata"]["uid"]]
    assert ("claim", leased.name) in leader.woken
