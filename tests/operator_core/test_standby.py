"""An operator that stands by sees all and does nothing; when it leads, it rests on what is true by then."""

from __future__ import annotations

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.adapters import objects
from terrahalt_operator.core import names
from terrahalt_operator.core.actions import WriteStatus
from terrahalt_operator.core.decide import PROGRESS_INTERVAL_S, decide
from terrahalt_operator.core.identity import claim_name_of
from terrahalt_operator.core.model import Claim, EnvFromSpec, Reference
from terrahalt_operator.errors import Unreachable
from terrahalt_operator.world import World
from tests.simulation.api_server import WATCHED, ApiServer, Door, Json, Pause

PLACE = "team-a"


class Dialled:
    """In the place of `Agents`."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.connected: set[str] = set()
        self.forgotten: list[str] = []

    def keep(self, agent: Any) -> None:
        self.uids.append(agent.uid)

    def drop(self, uid: str) -> None:
        return

    def forget_end(self, uid: str) -> None:
        self.forgotten.append(uid)

    def session(self, uid: str) -> None:
        return

    def awaits_cancel(self, uid: str) -> bool:
        return uid in self.connected

    def report(self, uid: str, run_id: str) -> None:
        return


class Standby:
    def __init__(self, server: ApiServer, *watched: str) -> None:
        self.server, self.dialled, self._watched = server, Dialled(), watched
        self.woken: list[tuple[str, ...]] = []
        self.uptime = self.clock = 0.0
        self.world = World(
            cluster=cast(Any, Door(server, "standby", (*watched, "ops") if watched else ())),
            agents=lambda _: cast(Any, self.dialled),
            trust=cast(Any, SimpleNamespace(report_secret=b"secret", ca_pem="CA")),
            leadership=cast(Any, SimpleNamespace(epoch=1)),
            claims_namespace="ops",
            watched=watched,
            agent_images={},
            clock=lambda: self.clock,
            uptime=lambda: self.uptime,
            wake=self.woken.append,
        )
        self.world.stand_by()
        done(self.world.relist())

    def watches(self) -> None:
        for plural in WATCHED:
            for event in self.server.log[plural]:
                if not self._watched or event[2]["metadata"]["namespace"] in self._watched:
                    self.world.see(*event)
            self.server.log[plural].clear()


def done(work: Coroutine[Any, Any, None], *, fails_at: int = -1) -> None:
    """Drives it to its end; the call of this number gets no answer."""
    steps = 0
    try:
        while True:
            step = work.throw(Unreachable("no answer")) if steps == fails_at else work.send(None)
            assert isinstance(step, Pause)
            steps += 1
    except StopIteration:
        return


@pytest.fixture
def server() -> ApiServer:
    server = ApiServer(lambda: 0.0, lambda *_: None)
    server.make("agentpools", PLACE, {"metadata": {"name": "default"}, "spec": {"minIdle": 1, "maxAgents": 3}})
    return server


def a_task(server: ApiServer, name: str) -> Json:
    spec = {"action": "Apply", "workspace": name, "source": {"inline": {"main.tf": ""}}}
    return server.make("terraformtasks", PLACE, {"metadata": {"name": name}, "spec": spec})


def a_known_task(server: ApiServer, name: str) -> Json:
    """An operator has seen it."""
    task = a_task(server, name)
    stamp = {names.UID_ANNOTATION: task["metadata"]["uid"]}
    metadata = {"annotations": stamp, "finalizers": [names.TASK_FINALIZER]}
    return server.change("terraformtasks", PLACE, name, {"metadata": metadata})


def an_agent(server: ApiServer, name: str = "agent") -> Json:
    labels = {"app.kubernetes.io/name": "terrahalt-agent", "terrahalt.dev/pool": "default"}
    server.make("pods", PLACE, {"metadata": {"name": name, "labels": labels}, "spec": {}})
    running = {"name": "agent", "containerID": "containerd://1", "state": {"running": {}}}
    status = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [running]}
    return server.change("pods", PLACE, name, {"status": status}, subresource="status")


def a_claim(server: ApiServer, task: Json, pod: Json) -> Claim:
    claim = Claim(
        name=f"run-{task['metadata']['name']}",
        resource_version="",
        run_id="run-1",
        task_namespace=PLACE,
        task_name=task["metadata"]["name"],
        task_uid=task["metadata"]["uid"],
        pod_name="agent",
        pod_uid=pod["metadata"]["uid"],
        container_id="containerd://1",
        fingerprint="",
    )
    body = objects.claim_lease(claim, objects.task(task), "2026-01-01T00:00:00.000000Z")
    return objects.claim(server.make("leases", "ops", body))


def runs(server: ApiServer, task: Json, pod: Json) -> None:
    agent = {"podName": "agent", "podUID": pod["metadata"]["uid"], "containerID": "containerd://1"}
    status = {"phase": "Applying", "runID": "run-1", "agent": agent}
    server.change("terraformtasks", PLACE, task["metadata"]["name"], {"status": status}, subresource="status")


def test_who_stands_by_knows_all_and_neither_dials_nor_decides(server: ApiServer) -> None:
    standby = Standby(server)
    pod, task = an_agent(server), a_task(server, "dns")
    claim = a_claim(server, task, pod)
    runs(server, task, pod)
    standby.watches()
    done(standby.world.relist())
    assert claim.name not in standby.world.claims.by_name
    assert [t.status.phase for t in standby.world.tasks.values.values()] == ["Applying"]
    assert set(standby.world.pods.values) == {pod["metadata"]["uid"]}
    assert (standby.woken, standby.dialled.uids) == ([], [])


def test_who_leads_dials_every_claimed_agent_and_looks_at_everything_what_runs_first(server: ApiServer) -> None:
    standby = Standby(server)
    over = a_task(server, "over")
    server.change("terraformtasks", PLACE, "over", {"status": {"phase": "Succeeded"}}, subresource="status")
    waiting, running, pod = a_known_task(server, "waiting"), a_known_task(server, "dns"), an_agent(server)
    claim = a_claim(server, running, pod)
    standby.watches()
    done(standby.world.lead())
    assert standby.dialled.uids == [pod["metadata"]["uid"]]
    first = list(dict.fromkeys(standby.woken))
    uids = {name: task["metadata"]["uid"] for name, task in (("over", over), ("waiting", waiting), ("dns", running))}
    assert set(first) == {
        ("task", uids["dns"]), ("claim", claim.name), ("pool", PLACE, "default"), ("task", uids["waiting"]),
        ("task", uids["over"]),
    }  # fmt: skip
    assert set(first[:2]) == {("task", uids["dns"]), ("claim", claim.name)}
    assert first[-1] == ("task", uids["over"])


def test_what_somebody_has_asked_for_while_nobody_led_comes_before_what_goes_on(server: ApiServer) -> None:
    """Of ten thousand tasks the last one to be looked at would wait for seconds."""
    standby = Standby(server)
    running, cancelled = a_known_task(server, "dns"), a_known_task(server, "vpc")
    pods = [an_agent(server, name) for name in ("agent", "agent-2")]
    for task, pod in zip((running, cancelled), pods, strict=True):
        a_claim(server, task, pod)
    server.change("terraformtasks", PLACE, "vpc", {"spec": {"cancel": True}})
    new = a_task(server, "new")
    standby.watches()
    done(standby.world.lead())
    assert standby.dialled.uids == [pod["metadata"]["uid"] for pod in reversed(pods)]
    begun = list(dict.fromkeys(standby.woken))
    pool = ("pool", PLACE, "default")
    assert begun[:3] == [("task", cancelled["metadata"]["uid"]), pool, ("task", new["metadata"]["uid"])]
    standby.woken.clear()
    for pod in pods:
        standby.dialled.connected.add(pod["metadata"]["uid"])
        standby.world.agent_changed(pod["metadata"]["uid"])
    assert [key for key in standby.woken if key[0] == "cancel"] == [("cancel", cancelled["metadata"]["uid"])]


def test_who_begins_to_lead_does_not_write_of_each_run_that_it_waits_for_its_agent(server: ApiServer) -> None:
    """Which is connected a moment later: with a thousand runs those were two thousand writes, before any other."""
    standby = Standby(server)
    task, pod = a_task(server, "dns"), an_agent(server)
    a_claim(server, task, pod)
    runs(server, task, pod)
    standby.watches()
    standby.uptime = 100.0
    done(standby.world.lead())
    world, uid = standby.world, task["metadata"]["uid"]
    stamped = replace(world.tasks.values[uid], stamp=uid, has_finalizer=True)
    written = decide(world.snapshot(stamped), 100.0).actions[-1]
    assert isinstance(written, WriteStatus)
    assert "waiting for the connection" in written.status.message
    # As who led before has left it, but for what is told of the connection.
    before = msgspec.structs.replace(written.status, message="terraform apply")
    led_before = replace(stamped, status=before)
    for waited_s, is_told in ((0.0, False), (PROGRESS_INTERVAL_S - 0.1, False), (PROGRESS_INTERVAL_S, True)):
        standby.uptime = standby.clock = 100.0 + waited_s
        decision = decide(world.snapshot(led_before), standby.clock)
        assert [type(action) for action in decision.actions] == [WriteStatus] * is_told
        assert is_told or decision.wake_after_s == pytest.approx(PROGRESS_INTERVAL_S - waited_s)


def test_a_task_that_ended_unseen_does_not_wait_any_more_when_it_leads(server: ApiServer) -> None:
    a_task(server, "dns")
    standby = Standby(server)
    server.change("terraformtasks", PLACE, "dns", {"status": {"phase": "Succeeded"}}, subresource="status")
    done(standby.world.lead())
    assert standby.world.pool_snapshot(PLACE, "default").waiting == ()


def test_claims_that_came_and_went_meanwhile_hold_nothing_and_those_of_now_hold_all(server: ApiServer) -> None:
    standby = Standby(server)
    pod, before, now = an_agent(server), a_task(server, "dns"), a_task(server, "network")
    gone = a_claim(server, before, pod)
    runs(server, before, pod)
    standby.watches()
    done(standby.world.relist())
    # It ends, is deleted, and the agent too, before this one leads.
    server.take_away("leases", "ops", gone.name)
    server.take_away("terraformtasks", PLACE, "dns")
    standby.watches()
    claim = a_claim(server, now, pod)
    done(standby.world.lead())
    assert list(standby.world.claims.by_name.values()) == [claim]
    assert set(standby.world.claims.by_task) == {now["metadata"]["uid"]}


def test_what_vanished_unseen_of_any_kind_a_list_tells_and_its_pool_is_looked_at(server: ApiServer) -> None:
    leader = Standby(server)
    an_agent(server)
    a_task(server, "dns")
    done(leader.world.lead())
    leader.woken.clear()
    for plural, name in (("agentpools", "default"), ("pods", "agent"), ("terraformtasks", "dns")):
        server.take_away(plural, PLACE, name)
    done(leader.world.relist())
    shelves: tuple[Any, ...] = (leader.world.pools, leader.world.pods, leader.world.tasks)
    assert [shelf.values for shelf in shelves] == [{}, {}, {}]
    assert ("pool", PLACE, "default") in leader.woken


def test_a_run_whose_claim_somebody_deleted_meanwhile_is_held_by_its_status(server: ApiServer) -> None:
    standby = Standby(server)
    pod, task = an_agent(server), a_task(server, "dns")
    claim = a_claim(server, task, pod)
    runs(server, task, pod)
    standby.watches()
    server.take_away("leases", "ops", claim.name)
    done(standby.world.lead())
    held = standby.world.claims.by_task[task["metadata"]["uid"]]
    assert (held.run_id, held.pod_uid, held.resource_version) == ("run-1", pod["metadata"]["uid"], "")
    assert set(standby.dialled.uids) == {pod["metadata"]["uid"]}


def test_the_task_of_another_claim_of_the_same_agent_is_looked_at_when_one_is_released(server: ApiServer) -> None:
    leader = Standby(server)
    pod, task, other = an_agent(server), a_task(server, "dns"), a_task(server, "network")
    a_claim(server, task, pod)
    done(leader.world.lead())
    released = a_claim(server, other, pod)
    done(leader.world.relist())
    leader.woken.clear()
    leader.world.claims.release(released)
    leader.world.wake_state(released)
    assert ("task", task["metadata"]["uid"]) in leader.woken


def test_a_task_that_works_on_another_state_all_of_a_sudden_stands_in_one_line_only(server: ApiServer) -> None:
    """No API server lets that through where the admission policies hold."""
    leader = Standby(server)
    backend = {"type": "s3", "config": {"bucket": "states", "key": "network"}}
    spec = {"action": "Apply", "workspace": "w", "source": {"inline": {"main.tf": ""}}, "backend": backend}
    task = server.make("terraformtasks", PLACE, {"metadata": {"name": "dns"}, "spec": spec})
    done(leader.world.lead())
    other = {"type": "s3", "config": {"bucket": "states", "key": None, "path": "network"}}
    server.change("terraformtasks", PLACE, "dns", {"spec": {"backend": other}})
    leader.watches()
    (seen,) = leader.world.tasks.values.values()
    assert dict(leader.world._of_state) == {claim_name_of(seen): {task["metadata"]["uid"]: seen}}


@pytest.mark.parametrize("waits", [True, False])
def test_where_a_task_waits_the_end_of_a_run_is_the_beginning_of_another(server: ApiServer, waits: bool) -> None:
    """What nobody waits for is left for later then."""
    leader = Standby(server)
    claim = a_claim(server, a_task(server, "dns"), an_agent(server))
    if waits:
        a_task(server, "network")
    done(leader.world.lead())
    assert leader.world.begins_at == {}
    server.change("terraformtasks", PLACE, "dns", {"status": {"phase": "Succeeded"}}, subresource="status")
    leader.watches()
    leader.world.claims.release(claim)
    leader.world.wake_state(claim)
    assert leader.world.begins_at == ({("pool", PLACE, "default"): leader.uptime} if waits else {})


def test_a_task_that_was_given_away_is_looked_at_when_a_pool_is_made_and_not_with_each_of_its_changes(
    server: ApiServer,
) -> None:
    """Its own may have been deleted before its run was started, and made anew."""
    leader = Standby(server)
    pod, task = an_agent(server), a_task(server, "dns")
    a_claim(server, task, pod)
    done(leader.world.lead())
    key = ("task", task["metadata"]["uid"])
    server.take_away("agentpools", PLACE, "default")
    leader.watches()
    (seen,) = leader.world.tasks.values.values()
    assert leader.world.snapshot(seen).pool_env_from is None
    leader.woken.clear()
    env_from = [{"secretRef": {"name": "aws"}}]
    server.make("agentpools", PLACE, {"metadata": {"name": "default"}, "spec": {"envFrom": env_from}})
    leader.watches()
    assert key in leader.woken
    assert leader.world.snapshot(seen).pool_env_from == (EnvFromSpec(secret_ref=Reference(name="aws")),)
    leader.woken.clear()
    server.change("agentpools", PLACE, "default", {"status": {"idle": 1}}, subresource="status")
    leader.watches()
    assert leader.woken
    assert key not in leader.woken


def test_a_cancel_of_a_run_is_sent_before_all_else_and_one_of_a_task_that_waits_has_nobody_to_be_sent_to(
    server: ApiServer,
) -> None:
    leader = Standby(server)
    pod, task, waiting = an_agent(server), a_task(server, "dns"), a_task(server, "network")
    a_claim(server, task, pod)
    done(leader.world.lead())
    leader.woken.clear()
    for name in ("dns", "network"):
        server.change("terraformtasks", PLACE, name, {"spec": {"cancel": True}})
    leader.watches()
    first = ("cancel", task["metadata"]["uid"])
    assert leader.woken[0] == first
    assert ("cancel", waiting["metadata"]["uid"]) not in leader.woken

    leader.woken.clear()
    server.change("terraformtasks", PLACE, "dns", {"status": {"message": "asked"}}, subresource="status")
    leader.watches()
    assert first not in leader.woken, "nothing was asked for anew"
    server.change("terraformtasks", PLACE, "dns", {"spec": {"cancelMode": "Force"}})
    leader.watches()
    assert leader.woken.count(first) == 1


def test_what_a_pools_status_says_is_no_reason_to_look_at_other_pools(server: ApiServer) -> None:
    server.make("agentpools", PLACE, {"metadata": {"name": "large"}, "spec": {}})
    leader = Standby(server)
    done(leader.world.lead())
    leader.watches()
    leader.woken.clear()
    server.change("agentpools", PLACE, "large", {"status": {"idle": 1}}, subresource="status")
    leader.watches()
    assert leader.woken == [("pool", PLACE, "large")]
    server.take_away("agentpools", PLACE, "large")
    leader.watches()
    assert ("pool", PLACE, "default") in leader.woken


@pytest.mark.parametrize("call", range(1, 8, 2))
def test_without_an_answer_of_the_api_server_it_does_nothing_and_tries_again(server: ApiServer, call: int) -> None:
    standby = Standby(server)
    pod, task = an_agent(server), a_task(server, "dns")
    a_claim(server, task, pod)
    standby.watches()
    with pytest.raises(Unreachable):
        done(standby.world.lead(), fails_at=call)
    assert (standby.woken, standby.dialled.uids) == ([], [])
    done(standby.world.lead())
    assert standby.dialled.uids == [pod["metadata"]["uid"]]
    assert len(standby.world.claims.by_name) == 1
