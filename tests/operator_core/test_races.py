"""Races between the workers, the lists and the watch, each as the one history that shows it."""

from __future__ import annotations

import pytest

from terrahalt_operator.errors import Unreachable
from terrahalt_operator.worklist import Key
from terrahalt_protocol.messages import Cancel, Outcome
from tests.operator_core.simulated import Json, Process
from tests.operator_core.test_simulation import RELIST, Simulation

POOL: Key = ("pool", "team-a", "default")


def a_warm_pool() -> Simulation:
    """One agent is connected and idle."""
    simulation = Simulation(min_idle=1)
    warm(simulation)
    assert [p.uid for p in simulation.processes.values()] == list(simulation.operator.sockets.seen)
    return simulation


def warm(simulation: Simulation) -> None:
    """Every agent that was made is connected."""
    for _ in range(3):
        for pod in simulation.server.all("pods"):
            simulation._kubelet(pod)
        simulation.watch(100)
        for uid in simulation.operator.sockets.wanted:
            simulation.operator.sockets.connect(uid)
        simulation.operator.finish_all()


def a_new_task(simulation: Simulation, *, of_another_workspace: bool = False) -> Key:
    """Seen by the operator before anything else that the watch has to tell."""
    simulation.create_task(0 if of_another_workspace else 7)
    simulation.operator.world.see("terraformtasks", False, simulation.tasks[-1])
    return ("task", simulation.tasks[-1]["metadata"]["uid"])


def work(simulation: Simulation, *keys: Key) -> None:
    """Each from its beginning to its end, and nothing else."""
    for key in keys:
        simulation.operator.wake(key)
        simulation.operator.begin(key)
        while key in simulation.operator.workers:
            simulation.operator.go_on(key)


def begin_list_of_leases(simulation: Simulation) -> None:
    """The API server has answered, but the answer has not arrived yet."""
    simulation.relist(0)
    simulation.operator.go_on(RELIST)
    simulation.operator.go_on(RELIST)


def finish_list(simulation: Simulation) -> None:
    while RELIST in simulation.operator.workers:
        simulation.operator.go_on(RELIST)


def started(simulation: Simulation, key: Key) -> Process:
    """The run is alive on its agent, while the write of `Assigned` is under way."""
    work(simulation, key, POOL)
    simulation.operator.wake(key)
    simulation.operator.begin(key)
    (process,) = [p for p in simulation.processes.values() if p.link and p.link.to_agent]
    assert process.link is not None
    process.obey(process.link.to_agent.popleft())
    simulation.operator.go_on(key)
    simulation.check()
    return process


def running(simulation: Simulation) -> tuple[Key, Process]:
    key = a_new_task(simulation)
    process = started(simulation, key)
    simulation.operator.finish_all()
    simulation.watch(100)
    return key, process


def phase_of(simulation: Simulation) -> str:
    return str(simulation.tasks[-1].get("status", {}).get("phase", ""))


def test_a_list_that_is_older_than_a_claim_does_not_make_the_operator_forget_it() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    key = a_new_task(simulation)
    started(simulation, key)
    finish_list(simulation)
    assert simulation.operator.world.claims.by_task.keys() == {key[1]}


def test_1_a_cancel_after_such_a_list_does_not_end_a_task_whose_run_is_alive() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    key = a_new_task(simulation)
    started(simulation, key)
    finish_list(simulation)
    simulation.lose_a_request_or_its_answer(0)
    simulation.cancel_task(0)
    simulation.watch(100)
    work(simulation, key)
    simulation.check()


def test_7_after_such_a_list_the_pool_does_not_delete_the_busy_agent() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    started(simulation, a_new_task(simulation))
    finish_list(simulation)
    simulation.a_report_arrives(0)
    work(simulation, POOL)
    simulation.check()


def test_a_list_that_is_older_than_a_release_does_not_bring_the_claim_back() -> None:
    simulation = a_warm_pool()
    _, process = running(simulation)
    begin_list_of_leases(simulation)
    (run,) = process.runs.values()
    simulation.a_run_goes_on_or_ends(0)
    simulation.a_run_goes_on_or_ends(0)
    while process.link and process.link.to_operator:
        simulation.a_report_arrives(0)
    work(simulation, ("task", run.task_uid))
    assert not simulation.server.all("leases")
    finish_list(simulation)
    assert not simulation.operator.world.claims.by_name


def test_an_agent_that_was_deleted_is_not_given_the_next_task() -> None:
    simulation = a_warm_pool()
    simulation.server.change("agentpools", "team-a", "default", {"spec": {"minIdle": 0}})
    simulation.watch(100)
    work(simulation, POOL)
    assert simulation.server.deleted
    work(simulation, a_new_task(simulation), POOL)
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


def test_a_claim_that_another_operator_has_made_wakes_its_task() -> None:
    simulation = a_warm_pool()
    key, _ = running(simulation)
    simulation.operator.finish_all()
    claims = simulation.operator.world.claims
    claims.remove(claims.by_task[key[1]].name)
    assert key not in simulation.operator.woken
    begin_list_of_leases(simulation)
    simulation.operator.go_on(RELIST)
    assert key in simulation.operator.woken


def without_its_lease(simulation: Simulation) -> None:
    (lease,) = simulation.server.all("leases")
    simulation.server.take_away("leases", "ops", lease["metadata"]["name"])
    simulation.relist(0)
    finish_list(simulation)


def test_a_run_whose_lease_somebody_deleted_is_not_killed() -> None:
    simulation = a_warm_pool()
    _, process = running(simulation)
    simulation.a_report_arrives(0)
    without_its_lease(simulation)
    work(simulation, POOL)
    assert process.uid not in simulation.server.deleted


def test_2_a_workspace_whose_lease_somebody_deleted_is_not_given_away_while_its_run_is_alive() -> None:
    simulation = a_warm_pool()
    running(simulation)
    warm(simulation)
    without_its_lease(simulation)
    following = a_new_task(simulation)
    work(simulation, following, POOL)
    assert not simulation.server.all("leases")


def test_the_end_of_a_run_whose_lease_somebody_deleted_is_seen() -> None:
    simulation = a_warm_pool()
    _, process = running(simulation)
    without_its_lease(simulation)
    simulation.operator.finish_all()
    for run in process.runs.values():
        process.end(run, Outcome.SUCCEEDED)
    while process.link and process.link.to_operator:
        simulation.a_report_arrives(0)
    simulation.operator.finish_all()
    assert phase_of(simulation) == "Succeeded"


def test_7_a_task_that_a_later_version_wrote_is_not_taken_for_a_vanished_one() -> None:
    """An operator that was rolled back reads what its successor left: an upgrade never kills a run."""
    simulation = a_warm_pool()
    _, process = running(simulation)
    change: Json = {"spec": {"cancelMode": "Later"}}
    simulation.server.change("terraformtasks", "team-a", simulation.tasks[0]["metadata"]["name"], change)
    simulation.restart_operator(0)
    simulation.connect(0)
    simulation.operator.finish_all()
    assert process.link is not None
    assert not [command for command in process.link.to_agent if isinstance(command, Cancel)]


def claimed_unheard(simulation: Simulation) -> Key:
    """Its claim is made, and the API server's answer is lost."""
    key = a_new_task(simulation)
    work(simulation, key)
    simulation.operator.wake(POOL)
    simulation.operator.begin(POOL)
    while not simulation.server.all("leases"):
        simulation.operator.go_on(POOL)
    simulation.operator.go_on(POOL, Unreachable("no answer"))
    return key


def test_5_a_task_ends_whose_claim_was_made_unheard_and_whose_node_is_lost_right_then() -> None:
    simulation = a_warm_pool()
    claimed_unheard(simulation)
    simulation.a_node_is_lost(0)
    simulation.settle()
    assert phase_of(simulation) == "Failed"


def test_2_an_agent_that_was_claimed_unheard_is_given_to_nobody_else() -> None:
    simulation = a_warm_pool()
    claimed_unheard(simulation)
    simulation.delete_task(0)
    simulation.watch(100)
    work(simulation, a_new_task(simulation, of_another_workspace=True), POOL)
    assert len(simulation.server.all("leases")) == 1


def test_a_claim_that_was_never_made_is_made_once_nobody_holds_it() -> None:
    simulation = a_warm_pool()
    key = a_new_task(simulation)
    work(simulation, key)
    simulation.operator.wake(POOL)
    simulation.operator.begin(POOL)
    simulation.operator.go_on(POOL, Unreachable("the request was lost"))
    assert not simulation.server.all("leases")
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


@pytest.mark.parametrize("is_pool_first", [True, False])
def test_a_task_that_does_not_fit_into_its_pools_pods_is_refused_and_never_claimed_whoever_looks_first(
    is_pool_first: bool,
) -> None:
    simulation = a_warm_pool()
    spec = {"action": "Apply", "workspace": "dns", "source": {"inline": {"main.tf": ""}}, "cancelGraceSeconds": 301}
    simulation.server.make("terraformtasks", "team-a", {"metadata": {"name": "misfit"}, "spec": spec})
    simulation.operator.world.see("terraformtasks", False, simulation.tasks[-1])
    key: Key = ("task", simulation.tasks[-1]["metadata"]["uid"])
    for _ in range(3):
        work(simulation, *((POOL, key) if is_pool_first else (key, POOL)))
    assert simulation.tasks[-1]["status"]["result"]["reason"] == "InvalidBudget"
    assert simulation.server.all("leases") == []
    simulation.check()
