"""Claims of other shards: each holds its state, and nothing else here is its."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from terrahalt_operator.adapters import objects
from terrahalt_operator.core.identity import is_of_another_shard
from terrahalt_operator.core.model import Claim
from terrahalt_operator.errors import NotFound
from terrahalt_operator.reconciler import STATES_EVERY_S, STATES_PER_S, Reconciler
from terrahalt_operator.store import Claims
from tests.operator_core import builders as b
from tests.operator_core.test_standby import PLACE, Standby, an_agent, done, runs, server
from tests.simulation.api_server import ANSWER, ApiServer, Json, Pause

__all__ = ["server"]

ELSEWHERE = "team-b"
POOL = ("pool", PLACE, "default")


def of_bucket(server: ApiServer, name: str, namespace: str = PLACE, *, key: str = "k") -> Json:
    """Tasks of one key work on one state."""
    backend = {"type": "s3", "config": {"bucket": "states", "key": key}}
    spec = {"action": "Apply", "workspace": "network", "source": {"inline": {"main.tf": ""}}, "backend": backend}
    return server.make("terraformtasks", namespace, {"metadata": {"name": name}, "spec": spec})


def claimed(server: ApiServer, obj: Json, *, run_id: str = "run-b", pod_uid: str = "pod-b") -> Claim:
    task = objects.task(obj)
    claim = b.a_claim(task, resource_version="", run_id=run_id, pod_uid=pod_uid)
    return objects.claim(server.make("leases", "ops", objects.claim_lease(claim, task, "2026-01-01T00:00:00.000000Z")))


@pytest.fixture
def shard(server: ApiServer) -> Standby:
    """Of team-a; `waiting` waits for the state that a run in team-b holds."""
    shard = Standby(server, PLACE)
    of_bucket(server, "waiting")
    claimed(server, of_bucket(server, "holder", ELSEWHERE))
    done(shard.world.lead())
    shard.woken.clear()
    return shard


def the_claim(shard: Standby) -> Claim:
    (claim,) = shard.world.claims.by_name.values()
    return claim


def its_holder(shard: Standby) -> list[str]:
    return list(shard.world.pool_snapshot(PLACE, "default").holders.values())


class Timers:
    """In the place of the worklist: when what is to be looked at, in seconds from now."""

    def __init__(self) -> None:
        self.after: dict[tuple[str, ...], float] = {}

    def wake_after(self, key: tuple[str, ...], wait_s: float) -> None:
        self.after[key] = min(wait_s, self.after.get(key, wait_s))


def reconciler_of(shard: Standby, timers: Timers | None = None, effects: object = None) -> Reconciler:
    return Reconciler(
        world=shard.world,
        effects=cast(Any, effects),
        worklist=cast(Any, timers or Timers()),
        leadership=cast(Any, SimpleNamespace(epoch=1)),
        clock=lambda: 0.0,
    )


def asked(work: Coroutine[Any, Any, None]) -> list[str]:
    """What it asks the API server for."""
    verbs: list[str] = []
    try:
        while True:
            if (step := cast(Pause, work.send(None))).verb:
                verbs.append(f"{step.verb} {step.of}")
    except StopIteration:
        return verbs


@pytest.mark.parametrize(
    ("watched", "is_anothers"), [((), False), ((PLACE,), False), ((ELSEWHERE,), True), ((PLACE, ELSEWHERE), False)]
)
def test_a_claim_is_another_shards_where_its_tasks_namespace_is_not_among_those_that_are_watched(
    watched: tuple[str, ...], is_anothers: bool
) -> None:
    claim = b.a_claim()
    assert claim.task_namespace == PLACE
    assert is_of_another_shard(claim, watched) is is_anothers


def test_a_claim_of_another_shard_is_found_by_its_name_and_is_no_tasks_and_no_agents() -> None:
    claims, anothers = Claims([PLACE]), replace(b.a_claim(), task_namespace=ELSEWHERE)
    claims.put(anothers)
    assert (claims.by_name, claims.by_task, claims.by_pod) == ({anothers.name: anothers}, {}, {})
    ours = b.a_claim(b.a_task(workspace="other", uid="other"))
    claims.put(ours)
    claims.release(ours)
    assert (claims.by_name, claims.by_task, claims.by_pod) == ({anothers.name: anothers}, {}, {})


def test_it_holds_its_state_with_the_reason_that_one_of_its_own_would_have(shard: Standby) -> None:
    assert its_holder(shard) == [f"{ELSEWHERE}/holder"]


def test_it_is_no_orphan_though_its_task_is_not_to_be_seen(shard: Standby) -> None:
    """Nobody is asked for that task, nothing is told to its agent, and it is not released."""
    assert asked(reconciler_of(shard).work(("claim", the_claim(shard).name))) == []
    assert {task.name for task in shard.world.tasks.values.values()} == {"waiting"}


def test_where_one_operator_sees_all_every_claim_is_its_own(server: ApiServer) -> None:
    alone = Standby(server)
    claim = claimed(server, of_bucket(server, "holder", ELSEWHERE))
    done(alone.world.lead())
    assert alone.world.claims.by_task == {claim.task_uid: claim}
    assert alone.world.claims.by_pod == {"pod-b": claim}


def test_a_list_without_it_has_those_looked_at_that_wait_for_its_state(server: ApiServer, shard: Standby) -> None:
    server.take_away("leases", "ops", the_claim(shard).name)
    done(shard.world.relist())
    assert its_holder(shard) == []
    assert POOL in shard.woken


def test_a_look_at_its_state_finds_it_as_it_was_released_or_taken_by_another_run(
    server: ApiServer, shard: Standby
) -> None:
    name = the_claim(shard).name
    done(shard.world.look_at_state(name))
    assert (its_holder(shard), shard.woken) == ([f"{ELSEWHERE}/holder"], [])
    server.take_away("leases", "ops", name)
    claimed(server, of_bucket(server, "next", ELSEWHERE), run_id="run-next")
    done(shard.world.look_at_state(name))
    assert (its_holder(shard), POOL in shard.woken) == ([f"{ELSEWHERE}/next"], True)
    shard.woken.clear()
    server.take_away("leases", "ops", name)
    done(shard.world.look_at_state(name))
    assert (its_holder(shard), POOL in shard.woken) == ([], True)


@pytest.mark.parametrize("answer", ["gone", "taken by another"])
def test_a_look_whose_answer_is_late_takes_nothing_from_a_claim_that_came_meanwhile(
    server: ApiServer, shard: Standby, answer: str
) -> None:
    name = the_claim(shard).name
    look = shard.world.look_at_state(name)
    assert cast(Pause, look.send(None)).verb == "get"
    server.take_away("leases", "ops", name)
    if answer != "gone":
        claimed(server, of_bucket(server, "next", ELSEWHERE), run_id="run-next")
        look.send(None)
        server.take_away("leases", "ops", name)
    ours = claimed(server, of_bucket(server, "ours"), run_id="run-a", pod_uid="pod-a")
    shard.world.claims.put(ours)
    with pytest.raises(StopIteration):
        _ = look.throw(NotFound(name)) if answer == "gone" else look.send(None)
    assert the_claim(shard) == ours


def test_a_state_is_looked_at_every_few_seconds_while_a_task_waits_for_it_and_not_otherwise(
    server: ApiServer, shard: Standby
) -> None:
    key = ("state", the_claim(shard).name)
    timers = Timers()
    reconciler = reconciler_of(shard, timers)
    assert asked(reconciler.work(key)) == [f"get leases {key[1]}"]
    assert timers.after == {key: STATES_EVERY_S}
    timers.after.clear()
    server.change("terraformtasks", PLACE, "waiting", {"spec": {"cancel": True}})
    shard.watches()
    done(reconciler.work(key))
    assert timers.after == {}


def test_however_many_states_are_waited_for_the_requests_in_a_second_are_bounded(server: ApiServer) -> None:
    shard, count = Standby(server, PLACE), 200
    for number in range(count):
        of_bucket(server, f"waiting-{number}", key=str(number))
        claimed(server, of_bucket(server, f"holder-{number}", ELSEWHERE, key=str(number)), run_id=f"run-{number}")
    shard.watches()
    done(shard.world.lead())
    timers = Timers()
    reconciler_of(shard, timers)._look_at_states(shard.world.pool_snapshot(PLACE, "default").holders)
    assert len(timers.after) == count
    assert sum(1 / wait_s for wait_s in timers.after.values()) == pytest.approx(STATES_PER_S)


def test_a_run_whose_claim_somebody_deletes_is_held_on_also_where_another_shard_is_quick_to_claim_its_state(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Both runs may be alive then; of neither it may be said that nothing ran."""
    shard, pod, task = Standby(server, PLACE), an_agent(server), of_bucket(server, "dns")
    claim = claimed(server, task, run_id="run-1", pod_uid=pod["metadata"]["uid"])
    runs(server, task, pod)
    shard.watches()
    done(shard.world.lead())
    server.take_away("leases", "ops", claim.name)
    anothers = claimed(server, of_bucket(server, "holder", ELSEWHERE))
    done(shard.world.relist())
    assert shard.world.claims.by_name == {claim.name: anothers}
    held = shard.world.claims.by_task[claim.task_uid]
    assert (held.run_id, shard.world.claims.by_pod) == ("run-1", {claim.pod_uid: held})
    assert "of task dns: somebody deleted it, another shard has it now" in caplog.text


@pytest.mark.parametrize("what", ["our claim is newer than the list", "the answer to our release was lost"])
def test_nobody_is_said_to_have_deleted_a_claim_that_is_there_or_that_was_released(
    server: ApiServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    shard, pod, task = Standby(server, PLACE), an_agent(server), of_bucket(server, "dns")
    anothers = of_bucket(server, "holder", ELSEWHERE)
    shard.watches()
    done(shard.world.lead())
    if what == "our claim is newer than the list":
        theirs = claimed(server, anothers)
        listing = shard.world.relist()
        listing.send(None)
        assert listing.send(None) is ANSWER
        server.take_away("leases", "ops", theirs.name)
        ours = claimed(server, task, run_id="run-1", pod_uid=pod["metadata"]["uid"])
        shard.world.claims.put(ours)
        done(listing)
        assert shard.world.claims.by_name == {ours.name: ours}
        assert shard.world.claims.by_task == {ours.task_uid: ours}
    else:
        ours = claimed(server, task, run_id="run-1", pod_uid=pod["metadata"]["uid"])
        done(shard.world.relist())
        server.change("terraformtasks", PLACE, "dns", {"status": {"phase": "Succeeded"}}, subresource="status")
        shard.watches()
        server.take_away("leases", "ops", ours.name)
        theirs = claimed(server, anothers)
        done(shard.world.relist())
        assert shard.world.claims.by_name == {theirs.name: theirs}
        assert shard.world.claims.by_task == {}
    assert caplog.text == ""


def test_a_run_without_a_claim_where_claims_are_is_told_of_by_who_begins_to_lead(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its installation had another `claimsNamespace` before."""
    shard, pod, task = Standby(server, PLACE), an_agent(server), of_bucket(server, "dns")
    runs(server, task, pod)
    claimed(server, of_bucket(server, "other", key="other"), run_id="run-2")
    with caplog.at_level(logging.WARNING):
        done(shard.world.lead())
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"task {PLACE}/dns: no claim in ops names its run")
