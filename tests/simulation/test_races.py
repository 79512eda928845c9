"""Races between the workers, the lists and the watch, each as the one history that shows it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from terrahalt_operator.core import names
from terrahalt_operator.core.schedule import BEGINS_WITHIN_S
from terrahalt_operator.errors import Refused, Unreachable
from terrahalt_operator.worklist import Key
from tests.simulation.api_server import WATCHED
from tests.simulation.operators import NAMESPACE, RELIST, Life
from tests.simulation.pods import Connection, Pod
from tests.simulation.simulation import MANUAL, Setting, Simulation

POOL: Key = ("pool", "team-a", "default")
CLAIM = "app.kubernetes.io/name=terrahalt-claim"


def a_warm_pool(idle: int = 1) -> Simulation:
    """So many agents are connected and idle."""
    simulation = Simulation(Setting(min_idle=idle, max_agents=3))
    simulation.start_up(life_of(simulation))
    warm(simulation)
    assert list(simulation.pods) == list(life_of(simulation).sockets.connections)
    return simulation


def life_of(simulation: Simulation) -> Life:
    (life,) = simulation.lives
    return life


def hear_all(simulation: Simulation) -> None:
    for plural in WATCHED:
        life_of(simulation).watch(plural, 1_000)


def warm(simulation: Simulation) -> None:
    """Every agent that was made is connected."""
    for _ in range(3):
        while simulation.a_kubelet_acts(0):
            pass
        hear_all(simulation)
        while simulation.an_agent_is_dialled(0):
            pass
        hear_agents(simulation)
        life_of(simulation).finish_all()


def hear_agents(simulation: Simulation) -> None:
    while simulation.a_report_arrives(0):
        pass


def tasks_of(simulation: Simulation) -> list[str]:
    return [task["metadata"]["uid"] for task in simulation.tasks]


def a_new_task(simulation: Simulation, *, of_another_workspace: bool = False) -> Key:
    """Seen by the operator before anything else that the watch has to tell."""
    simulation.a_task_is_created(3 if of_another_workspace else 0)
    life_of(simulation).world.see("terraformtasks", False, simulation.tasks[-1])
    return ("task", simulation.tasks[-1]["metadata"]["uid"])


def work(simulation: Simulation, *keys: Key) -> None:
    """Each from its beginning to its end, and nothing else."""
    life = life_of(simulation)
    for key in keys:
        begin(life, key)
        finish(life, key)


def begin(life: Life, key: Key) -> None:
    life.wake(key)
    life.begin(key)


def finish(life: Life, key: Key) -> None:
    while key in life.workers:
        life.go_on(key)


def begin_list_of_leases(simulation: Simulation) -> None:
    """The API server has answered, but the answer has not arrived yet."""
    life = life_of(simulation)
    life.relist()
    life.go_on(RELIST)


def finish_list(simulation: Simulation) -> None:
    finish(life_of(simulation), RELIST)


def commanded(simulation: Simulation) -> list[Connection]:
    return [c for c in simulation.connections if c.to_agent]


def started(simulation: Simulation, key: Key) -> Pod:
    """The run is alive on its agent, whatever its task's worker is at right then."""
    life = life_of(simulation)
    work(simulation, POOL)
    while not commanded(simulation):
        if key not in life.workers:
            assert key in life.woken
            life.begin(key)
        else:
            life.go_on(key)
    (connection,) = commanded(simulation)
    assert connection.pod.receive(connection)
    assert connection.pod.live_runs
    return connection.pod


def running(simulation: Simulation) -> tuple[Key, Pod]:
    key = a_new_task(simulation)
    work(simulation, key)
    pod = started(simulation, key)
    life_of(simulation).finish_all()
    hear_all(simulation)
    return key, pod


def end_run(simulation: Simulation, pod: Pod) -> None:
    """And the operator hears of it."""
    while pod.live_runs:
        if pod.jobs:
            pod.finish(0)
        else:
            pod.terraform_goes_on()
    hear_agents(simulation)


def claims(simulation: Simulation) -> int:
    return len(simulation.server.all("leases", NAMESPACE, CLAIM))


def phase_of(simulation: Simulation) -> str:
    return str(simulation.tasks[-1].get("status", {}).get("phase", ""))


def test_a_list_that_is_older_than_a_claim_does_not_make_the_operator_forget_it() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    key = a_new_task(simulation)
    work(simulation, key)
    started(simulation, key)
    finish_list(simulation)
    assert life_of(simulation).world.claims.by_task.keys() == {key[1]}


def test_1_a_cancel_after_such_a_list_does_not_end_a_task_whose_run_is_alive() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    key = a_new_task(simulation)
    work(simulation, key)
    pod = started(simulation, key)
    finish_list(simulation)
    finish(life_of(simulation), key)
    simulation.a_task_is_cancelled(0)
    hear_all(simulation)
    work(simulation, key)
    assert pod.live_runs
    assert phase_of(simulation) == "Cancelling"


def test_7_after_such_a_list_the_pool_does_not_delete_the_busy_agent() -> None:
    simulation = a_warm_pool()
    begin_list_of_leases(simulation)
    key = a_new_task(simulation)
    work(simulation, key)
    started(simulation, key)
    finish_list(simulation)
    hear_agents(simulation)
    work(simulation, POOL)
    assert going(simulation) == []


def going(simulation: Simulation) -> list[str]:
    """The pods that somebody has deleted."""
    return [p["metadata"]["uid"] for p in simulation.server.all("pods") if "deletionTimestamp" in p["metadata"]]


def test_a_list_that_is_older_than_a_release_does_not_bring_the_claim_back() -> None:
    simulation = a_warm_pool()
    key, pod = running(simulation)
    begin_list_of_leases(simulation)
    end_run(simulation, pod)
    work(simulation, key)
    assert claims(simulation) == 0
    finish_list(simulation)
    assert not life_of(simulation).world.claims.by_name


def test_an_agent_that_was_deleted_is_not_given_the_next_task() -> None:
    simulation = a_warm_pool()
    simulation.server.change("agentpools", "team-a", "default", {"spec": {"minIdle": 0}})
    hear_all(simulation)
    work(simulation, POOL)
    assert going(simulation)
    work(simulation, a_new_task(simulation), POOL)
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


def without_its_lease(simulation: Simulation) -> None:
    (lease,) = simulation.server.all("leases", NAMESPACE, CLAIM)
    simulation.server.take_away("leases", NAMESPACE, lease["metadata"]["name"], by="a person")
    life_of(simulation).relist()
    finish_list(simulation)


def test_a_run_whose_lease_somebody_deleted_is_not_killed() -> None:
    simulation = a_warm_pool()
    running(simulation)
    hear_agents(simulation)
    without_its_lease(simulation)
    work(simulation, POOL)
    assert going(simulation) == []


def test_2_a_workspace_whose_lease_somebody_deleted_is_not_given_away_while_its_run_is_alive() -> None:
    simulation = a_warm_pool()
    running(simulation)
    warm(simulation)
    without_its_lease(simulation)
    work(simulation, a_new_task(simulation), POOL)
    assert claims(simulation) == 0


def test_the_end_of_a_run_whose_lease_somebody_deleted_is_seen() -> None:
    simulation = a_warm_pool()
    _, pod = running(simulation)
    without_its_lease(simulation)
    life_of(simulation).finish_all()
    end_run(simulation, pod)
    life_of(simulation).finish_all()
    assert phase_of(simulation) == "Succeeded"


def test_7_a_task_that_a_later_version_wrote_is_not_taken_for_a_vanished_one() -> None:
    """An operator that was rolled back reads what its successor left: an upgrade never kills a run."""
    simulation = a_warm_pool()
    _, pod = running(simulation)
    meta = simulation.tasks[0]["metadata"]
    simulation.server.change("terraformtasks", "team-a", meta["name"], {"spec": {"cancelMode": "Later"}})
    simulation.an_operator_dies(0)
    simulation.an_operator_starts_where_none_is(0)
    simulation.an_agent_is_dialled(0)
    hear_agents(simulation)
    life_of(simulation).finish_all()
    assert commanded(simulation) == []
    assert pod.live_runs


def claimed_unheard(simulation: Simulation) -> Key:
    """Its claim is made, and the API server's answer is lost."""
    life = life_of(simulation)
    key = a_new_task(simulation)
    work(simulation, key)
    begin(life, POOL)
    while not claims(simulation):
        life.go_on(POOL)
    life.go_on(POOL, Unreachable("no answer"))
    return key


def test_5_a_task_gets_another_agent_whose_claim_was_made_unheard_and_whose_node_is_lost_right_then() -> None:
    simulation = a_warm_pool()
    claimed_unheard(simulation)
    simulation.a_node_loses_its_power(0)
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


def test_2_an_agent_that_was_claimed_unheard_is_given_to_nobody_else() -> None:
    simulation = a_warm_pool()
    claimed_unheard(simulation)
    simulation.a_task_is_deleted(0)
    hear_all(simulation)
    work(simulation, a_new_task(simulation, of_another_workspace=True), POOL)
    assert claims(simulation) == 1


def test_a_claim_that_was_never_made_is_made_once_nobody_holds_it() -> None:
    simulation = a_warm_pool()
    key = a_new_task(simulation)
    work(simulation, key)
    begin(life_of(simulation), POOL)
    life_of(simulation).go_on(POOL, Unreachable("the request was lost"))
    assert claims(simulation) == 0
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


def test_an_idle_agent_that_was_told_to_end_before_it_could_hear_is_told_again_and_ends() -> None:
    simulation = Simulation(Setting(min_idle=1, max_agents=1))
    simulation.start_up(life_of(simulation))
    life_of(simulation).finish_all()
    simulation.a_kubelet_acts(0)
    simulation.a_pod_is_deleted(0)
    (pod,) = simulation.pods.values()
    pod.terminate(403, is_heard=False)
    warm(simulation)
    work(simulation, POOL)
    assert pod.is_alive
    simulation._advance(11)
    finish(life_of(simulation), POOL)
    assert POOL in life_of(simulation).woken, "by the clock"
    work(simulation, POOL)
    (connection,) = commanded(simulation)
    pod.receive(connection)
    assert (pod.is_alive, pod.exit_code) == (False, 0)


@pytest.mark.parametrize("is_pool_first", [True, False])
def test_a_task_that_does_not_fit_into_its_pools_pods_is_refused_and_never_claimed_whoever_looks_first(
    is_pool_first: bool,
) -> None:
    simulation = a_warm_pool()
    spec = {"action": "Apply", "workspace": "dns", "source": {"inline": {"main.tf": ""}}, "cancelGraceSeconds": 301}
    simulation.server.make("terraformtasks", "team-a", {"metadata": {"name": "misfit"}, "spec": spec})
    life_of(simulation).world.see("terraformtasks", False, simulation.tasks[-1])
    key: Key = ("task", simulation.tasks[-1]["metadata"]["uid"])
    for _ in range(3):
        work(simulation, *((POOL, key) if is_pool_first else (key, POOL)))
    assert simulation.tasks[-1]["status"]["result"]["reason"] == "InvalidBudget"
    assert claims(simulation) == 0


def test_a_claim_that_another_operator_has_made_is_found_by_the_next_list_and_its_task_is_looked_at() -> None:
    simulation = a_warm_pool()
    key = a_new_task(simulation)
    work(simulation, key)
    other = life_of(simulation)
    simulation.an_operator_starts(0)
    life = simulation.lives[-1]
    simulation.start_up(life)
    life.finish_all()
    begin(other, POOL)
    finish(other, POOL)
    assert claims(simulation) == 1
    life.relist()
    finish(life, RELIST)
    assert key in life.woken


@pytest.mark.parametrize(("exit_code", "phase"), [(0, "Succeeded"), (1, "Failed"), (None, "Cancelled")])
def test_4_an_operator_that_was_away_writes_the_true_result_though_the_pod_is_over(
    exit_code: int | None, phase: str
) -> None:
    simulation = a_warm_pool()
    _, pod = running(simulation)
    simulation.an_operator_dies(0)
    simulation.a_task_is_cancelled(0)
    if exit_code is None:
        pod.terminate(400)
    elif exit_code:
        pod.finish(0)
        pod.terraform_goes_on(exit_code)
    while pod.live_runs:
        if pod.jobs:
            pod.finish(0)
        else:
            assert pod.terraform_goes_on()
    pod.die(137)
    simulation.settle()
    assert phase_of(simulation) == phase


# ---- an operator that leads no more, and goes on


def another_leads(simulation: Simulation) -> tuple[Life, Life]:
    """The one before it goes on wherever it was; the new one knows every agent."""
    before = life_of(simulation)
    simulation.an_operator_starts(0)
    new = simulation.lives[-1]
    simulation.start_up(new)
    for pod in simulation.pods.values():
        if simulation.can_connect(new, pod.uid):
            simulation.connect(new, pod)
    hear_agents(simulation)
    return before, new


def hear(life: Life) -> None:
    for plural in WATCHED:
        life.watch(plural, 1_000)


def run_to_its_end(simulation: Simulation, life: Life) -> None:
    """The task that waits is given away by this operator, and all that follows."""
    for _ in range(60):
        life.finish_all()
        while simulation.a_command_arrives(0):
            pass
        for pod in simulation.pods.values():
            while pod.jobs:
                pod.finish(0)
            pod.terraform_goes_on()
        hear_agents(simulation)
        hear(life)


@pytest.mark.parametrize("steps", range(5))
def test_6_an_old_leader_that_claims_a_task_late_does_not_run_it_a_second_time(steps: int) -> None:
    """Its claim is made after the task has ended, for an agent that has heard of no other epoch; and whichever of its
    requests is lost after that."""
    simulation = a_warm_pool(idle=2)
    key = a_new_task(simulation)
    before, new = another_leads(simulation)
    work_of(before, key)
    before.sockets.hang_up(next(iter(before.sockets.connections.values())))
    begin(before, POOL)
    hear(new)
    run_to_its_end(simulation, new)
    assert phase_of(simulation) == "Succeeded"
    finish(before, POOL)
    begin(before, key)
    for _ in range(steps):
        if key in before.workers:
            before.go_on(key)
    if key in before.workers:
        before.go_on(key, Unreachable("no answer"))
    before.finish_all()
    while simulation.a_command_arrives(0):
        pass
    assert len(simulation.judge.runs) == 1


def a_manual_task(simulation: Simulation, life: Life) -> Key:
    simulation.a_task_is_created(512 * MANUAL[0])
    hear(life)
    return ("task", simulation.tasks[-1]["metadata"]["uid"])


@pytest.mark.parametrize("is_approved", [False, True])
def test_6_an_old_leader_that_claims_a_task_late_whose_plan_waits_does_not_run_it(is_approved: bool) -> None:
    simulation = a_warm_pool(idle=2)
    before = life_of(simulation)
    key = a_manual_task(simulation, before)
    work_of(before, key)
    before, new = another_leads(simulation)
    before.sockets.hang_up(next(iter(before.sockets.connections.values())))
    begin(before, POOL)
    hear(new)
    run_to_its_end(simulation, new)
    assert phase_of(simulation) == "AwaitingApproval"
    finish(before, POOL)
    assert claims(simulation) == 1
    new.relist()
    finish(new, RELIST)
    run_to_its_end(simulation, new)
    assert (phase_of(simulation), len(simulation.judge.runs)) == ("AwaitingApproval", 1)
    if is_approved:
        assert simulation.a_plan_is_approved(0)
        hear(new)
    else:
        simulation.time_passes(63)
    run_to_its_end(simulation, new)
    assert (phase_of(simulation), len(simulation.judge.runs)) == (("Succeeded", 2) if is_approved else ("Failed", 1))
    assert claims(simulation) == 0


def test_2_an_old_leader_that_knows_of_no_approval_leaves_the_claim_of_the_run_that_applies() -> None:
    simulation = a_warm_pool(idle=2)
    before, new = another_leads(simulation)
    key = a_manual_task(simulation, new)
    run_to_its_end(simulation, new)
    hear(before)
    before.finish_all()
    assert simulation.a_plan_is_approved(0)
    hear(new)
    new.finish_all()
    before.relist()
    before.go_on(RELIST)
    before.go_on(RELIST)
    assert before.world.claims.by_task.keys() == {key[1]}
    work_of(before, key)
    assert claims(simulation) == 1


def work_of(life: Life, key: Key) -> None:
    begin(life, key)
    finish(life, key)


def a_busy_agent_of_the_new_leader(simulation: Simulation, before: Life, new: Life, *, idle: int) -> Pod:
    """The old leader is in the middle of its pool, of which it believes that so many agents may be idle."""
    meta = simulation.server.all("agentpools")[0]["metadata"]
    simulation.server.change("agentpools", meta["namespace"], meta["name"], {"spec": {"minIdle": idle}})
    hear(before)
    before.wake(POOL)
    before.begin(POOL)
    simulation.a_task_is_created(0)
    hear(new)
    while not simulation.judge.runs:
        new.finish_all()
        assert simulation.a_command_arrives(0)
    (run,) = simulation.judge.runs.values()
    return run.pod


def test_7_an_old_leaders_late_request_to_delete_an_idle_agent_spares_the_busy_one() -> None:
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    pod = a_busy_agent_of_the_new_leader(simulation, before, new, idle=0)
    assert POOL in before.workers
    finish(before, POOL)
    assert pod.uid not in going(simulation)


def test_7_an_old_leader_asks_who_claims_a_run_that_it_does_not_know_before_it_deletes_its_agent() -> None:
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    pod = a_busy_agent_of_the_new_leader(simulation, before, new, idle=1)
    finish(before, POOL)
    hear_agents(simulation)
    before.watch("pods", 1_000)
    for _ in range(3):
        work_of(before, POOL)
    assert pod.uid not in going(simulation)
    assert before.world.claims.by_pod[pod.uid].run_id in pod.live_runs


def test_a_task_whose_agent_an_old_leader_deletes_right_after_its_claim_gets_another_one() -> None:
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    meta = simulation.server.all("agentpools")[0]["metadata"]
    simulation.server.change("agentpools", meta["namespace"], meta["name"], {"spec": {"minIdle": 0}})
    hear(before)
    key = claimed_while_at_its_pool(simulation, before, new)
    (pod,) = simulation.pods.values()
    finish(before, POOL)
    assert pod.uid in going(simulation)
    work_of(new, key)
    simulation.settle()
    (run,) = simulation.judge.runs.values()
    assert (phase_of(simulation), run.pod is pod) == ("Succeeded", False)


def test_a_claim_whose_agent_is_gone_by_force_before_anybody_looks_is_given_up() -> None:
    simulation = a_warm_pool()
    claimed_unheard(simulation)
    assert simulation.a_pod_is_torn_out(0)
    simulation.settle()
    assert phase_of(simulation) == "Succeeded"


def test_4_an_old_leader_does_not_let_a_pod_go_whose_end_it_has_seen_and_whose_run_it_has_not() -> None:
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    pod = a_busy_agent_of_the_new_leader(simulation, before, new, idle=1)
    finish(before, POOL)
    pod.die(137)
    while simulation.a_kubelet_acts(0):
        pass
    for _ in range(3):
        before.watch("pods", 1_000)
        work_of(before, POOL)
    assert has_finalizer(simulation, pod)


def test_an_old_leaders_late_request_to_take_the_label_of_a_run_off_spares_that_of_the_next_run() -> None:
    simulation = a_warm_pool()
    (pod,) = simulation.pods.values()
    label(simulation, pod, "run-of-before")
    life = life_of(simulation)
    hear(life)
    begin(life, POOL)
    label(simulation, pod, "run-of-now")
    finish(life, POOL)
    (obj,) = simulation.server.all("pods")
    assert obj["metadata"]["labels"][names.RUN_LABEL] == "run-of-now"


def label(simulation: Simulation, pod: Pod, run_id: str) -> None:
    simulation.server.change("pods", pod.namespace, pod.name, {"metadata": {"labels": {names.RUN_LABEL: run_id}}})


def test_4_an_old_leaders_late_request_to_let_a_dead_idle_agent_go_spares_one_that_was_given_a_run() -> None:
    """The new one has not heard yet that it is dead: only its end will tell."""
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    (pod,) = simulation.pods.values()
    pod.die(137)
    assert simulation.a_kubelet_acts(0)
    before.watch("pods", 1_000)
    key = claimed_while_at_its_pool(simulation, before, new)
    work_of(new, key)
    assert phase_of(simulation) == "Assigned"
    finish(before, POOL)
    assert has_finalizer(simulation, pod)
    simulation.settle()
    assert simulation.tasks[-1]["status"]["result"]["reason"] == "AgentLost"


def claimed_while_at_its_pool(simulation: Simulation, before: Life, new: Life) -> Key:
    """The old leader's first request about its pool is on its way when the new one claims an agent there."""
    begin(before, POOL)
    assert POOL in before.workers
    simulation.a_task_is_created(0)
    new.watch("terraformtasks", 1_000)
    key: Key = ("task", simulation.tasks[-1]["metadata"]["uid"])
    work_of(new, key)
    work_of(new, POOL)
    assert claims(simulation) == 1
    return key


def has_finalizer(simulation: Simulation, pod: Pod) -> bool:
    obj = simulation.server.find("pods", pod.namespace, pod.name)
    return obj is not None and names.AGENT_FINALIZER in obj["metadata"]["finalizers"]


@pytest.mark.parametrize("dies", [True, False], ids=["its pod dies", "its connection is lost"])
def test_4_an_end_that_an_agent_has_told_counts_whatever_becomes_of_it_before_that_is_written(dies: bool) -> None:
    """The message in its pod, which says the same, may be cut or missing."""
    simulation = a_warm_pool()
    _, pod = running(simulation)
    life = life_of(simulation)
    end_run(simulation, pod)
    if dies:
        pod.message = pod.message[:100]
        pod.die(137)
        while simulation.a_kubelet_acts(0):
            pass
        hear_all(simulation)
    else:
        for connection in list(simulation.connections):
            life.sockets.hang_up(connection)
    assert life.world.agents.session(pod.uid) is None
    for _ in range(2):  # what it is at may rest on the pod of before
        life.finish_all()
    assert phase_of(simulation) == "Succeeded"
    assert claims(simulation) == 0
    assert life.world.agents._ends == {}


def test_a_claim_that_was_known_from_the_status_alone_is_released_with_its_lease() -> None:
    """The list that brings the Lease arrives while the end is being written."""
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    key = a_new_task_of(simulation, new)
    new.finish_all()
    hear(before)
    assert before.world.claims.by_task[key[1]].resource_version == ""
    for pod in simulation.pods.values():
        pod.die(137)
    while simulation.a_kubelet_acts(0):
        pass
    hear(before)
    work_of(before, key)
    begin(before, key)
    before.relist()
    finish(before, RELIST)
    finish(before, key)
    assert phase_of(simulation) == "Failed"
    assert claims(simulation) == 0


def a_new_task_of(simulation: Simulation, life: Life) -> Key:
    simulation.a_task_is_created(0)
    hear(life)
    return ("task", simulation.tasks[-1]["metadata"]["uid"])


def test_a_claim_without_a_lease_is_forgotten_once_its_task_is_gone_and_who_waits_for_the_workspace_is_looked_at() -> (
    None
):
    """Known from the status alone; the other leader has seen the end of the run, and its pod is gone."""
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    a_new_task_of(simulation, new)
    new.finish_all()
    hear(before)
    simulation.a_task_is_deleted_by_force(0)
    for obj in simulation.server.all("pods"):
        simulation.server.change("pods", "team-a", obj["metadata"]["name"], {"metadata": {"finalizers": None}})
        simulation.server.take_away("pods", "team-a", obj["metadata"]["name"], grace_s=0)
    for lease in simulation.server.all("leases", NAMESPACE, CLAIM):
        simulation.server.take_away("leases", NAMESPACE, lease["metadata"]["name"], by="a person")
    a_new_task_of(simulation, before)
    before.finish_all()
    assert before.world.claims.by_name
    before.relist()
    finish(before, RELIST)
    assert not before.world.claims.by_name
    assert POOL in before.woken


def test_7_a_run_whose_task_the_watch_has_not_told_of_yet_is_not_wound_down() -> None:
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    a_new_task_of(simulation, new)
    new.finish_all()
    before.relist()
    while not before.world.claims.by_name:
        before.go_on(RELIST)
    (claim,) = before.world.claims.by_name.values()
    assert claim.task_uid not in before.world.tasks.values
    work_of(before, ("claim", claim.name))
    assert claim.task_uid in before.world.tasks.values
    assert not any("Cancel" in frame for c in simulation.connections for frame in c.to_agent)


def test_1_an_old_leader_asks_who_claims_a_run_before_it_lets_a_pod_go_that_is_given_up() -> None:
    """Its Node is gone from the API server, and the container may be running on all the same."""
    simulation = a_warm_pool()
    before, new = another_leads(simulation)
    pod = a_busy_agent_of_the_new_leader(simulation, before, new, idle=1)
    finish(before, POOL)
    assert simulation.a_node_is_cut_off(0)
    assert simulation.a_node_object_is_removed(0)
    while simulation.pod_gc_acts(0):
        pass
    before.watch("pods", 1_000)
    work_of(before, POOL)
    assert pod.live_runs
    assert pod.uid in going(simulation)


def test_an_agent_with_several_runs_has_them_one_after_the_other_and_no_more() -> None:
    simulation = Simulation(Setting(min_idle=1, max_agents=1, max_tasks=2))
    simulation.start_up(life_of(simulation))
    warm(simulation)
    pods = []
    for _ in range(3):
        simulation.a_task_is_created(3)
        simulation.settle()
        assert phase_of(simulation) == "Succeeded"
        pods.append(simulation.tasks[-1]["status"]["agent"]["podUID"])
    assert pods[0] == pods[1] != pods[2]
    first = simulation.pods[pods[0]]
    assert (len(first.starts), first.is_alive, first.exit_code) == (2, False, 0)


def test_no_autoscaler_may_take_an_agent_from_its_reservation_on_and_it_may_again_where_that_was_given_up() -> None:
    simulation = a_warm_pool()
    (pod,) = simulation.pods.values()
    key = a_new_task(simulation)
    work(simulation, key, POOL)
    assert marks(simulation, pod) == ("", None, "true")
    begin(life_of(simulation), key)
    while not marks(simulation, pod)[0]:
        life_of(simulation).go_on(key)
    assert marks(simulation, pod)[1:] == ("true", "false")
    assert phase_of(simulation) != "Assigned"
    life_of(simulation).go_on(key, Unreachable("the record was lost"))
    simulation.a_task_is_cancelled(0)
    simulation.settle()
    assert phase_of(simulation) == "Cancelled"
    simulation.now += BEGINS_WITHIN_S
    life_of(simulation).ring()
    life_of(simulation).finish_all()
    assert marks(simulation, pod) == ("", None, "true")
    assert pod.is_alive


def marks(simulation: Simulation, pod: Pod) -> tuple[str, str | None, str]:
    """The run on its label, and what autoscalers are told."""
    obj = simulation.server.find("pods", pod.namespace, pod.name)
    assert obj is not None
    annotations = obj["metadata"]["annotations"]
    run = obj["metadata"]["labels"].get(names.RUN_LABEL, "")
    return run, annotations.get(names.DO_NOT_DISRUPT), annotations[names.SAFE_TO_EVICT]


# ---- what a pool has beside its agents


def change_pool(simulation: Simulation, **spec: object) -> None:
    simulation.server.change("agentpools", "team-a", "default", {"spec": spec})
    hear_all(simulation)
    work(simulation, POOL)


def budgets(simulation: Simulation) -> list[str]:
    return [budget["metadata"]["name"] for budget in simulation.server.all("poddisruptionbudgets")]


def relist(simulation: Simulation) -> None:
    life_of(simulation).relist()
    finish_list(simulation)
    life_of(simulation).finish_all()


def test_an_operator_that_may_not_keep_a_pool_gives_its_tasks_away_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = a_warm_pool()
    simulation.server.change("agentpools", "team-a", "default", {"metadata": {"finalizers": None}})
    hear_all(simulation)
    real = simulation.server.change

    def refuse(plural: str, *what: Any, subresource: str = "", by: str = "somebody") -> dict[str, Any]:
        if plural == "agentpools" and not subresource:
            raise Refused("403 agentpools is forbidden: the role lacks the verb patch")
        return real(plural, *what, subresource=subresource, by=by)

    monkeypatch.setattr(simulation.server, "change", refuse)
    key = a_new_task(simulation)
    work(simulation, key, POOL, key)
    assert phase_of(simulation) == "Assigned"


def test_a_budget_follows_its_pool_and_comes_back_where_somebody_deletes_it() -> None:
    simulation = a_warm_pool()
    assert budgets(simulation) == []
    change_pool(simulation, drainPolicy="Wait")
    assert budgets(simulation) == ["terrahalt-agents-default"]
    simulation.server.take_away("poddisruptionbudgets", "team-a", "terrahalt-agents-default")
    relist(simulation)
    assert budgets(simulation) == ["terrahalt-agents-default"]
    change_pool(simulation, drainPolicy="Ladder")
    assert budgets(simulation) == []


def test_another_operator_knows_of_a_budget_that_it_has_not_made() -> None:
    simulation = a_warm_pool()
    change_pool(simulation, drainPolicy="Wait")
    simulation.an_operator_dies(0)
    simulation.server.change("agentpools", "team-a", "default", {"spec": {"drainPolicy": "Ladder"}})
    simulation.an_operator_starts(0)
    simulation.start_up(life_of(simulation))
    life_of(simulation).finish_all()
    assert budgets(simulation) == []


def test_a_budget_outlives_its_pool_for_the_runs_and_goes_with_the_last_agent() -> None:
    simulation = a_warm_pool()
    change_pool(simulation, drainPolicy="Wait")
    _, pod = running(simulation)
    simulation.a_pool_is_deleted(0)
    hear_all(simulation)
    simulation.now += 1.5  # a pool's status is written once a second
    work(simulation, POOL)
    assert budgets(simulation)
    assert simulation.server.all("agentpools"), "it waits for its run"
    condition = simulation.server.all("agentpools")[0]["status"]["conditions"][0]
    assert (condition["reason"], condition["message"]) == ("Deleting", "waits for the end of: task-1")
    end_run(simulation, pod)
    life_of(simulation).finish_all()
    assert not claims(simulation)
    simulation.now += 5
    for _ in range(6):
        simulation._round(may_relist=True)
    assert (simulation.server.all("agentpools"), budgets(simulation), simulation.server.all("pods")) == ([], [], [])


def test_a_budget_that_is_refused_is_told_by_the_pool_whose_tasks_go_on_until_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = a_warm_pool()
    asked = 0
    with monkeypatch.context() as forbidden:
        make = simulation.server.make

        def refuse(plural: str, namespace: str, body: dict[str, object], by: str = "somebody") -> dict[str, object]:
            nonlocal asked
            if plural == "poddisruptionbudgets":
                asked += 1
                raise Refused("403 poddisruptionbudgets.policy is forbidden")
            return make(plural, namespace, body, by=by)

        forbidden.setattr(simulation.server, "make", refuse)
        change_pool(simulation, drainPolicy="Wait")
        running(simulation)
        simulation.now += 1.5  # a pool's status is written once a second
        work(simulation, POOL, POOL)
        condition = simulation.server.all("agentpools")[0]["status"]["conditions"][0]
        assert (condition["status"], condition["reason"]) == ("False", "DrainNotGuarded")
        assert "403 poddisruptionbudgets.policy is forbidden" in condition["message"]
        assert asked == 1, "it was tried again at each look"
    simulation.now += 5
    life_of(simulation).ring()
    life_of(simulation).finish_all()
    assert budgets(simulation)
    simulation.now += 1.5
    life_of(simulation).ring()
    life_of(simulation).finish_all()
    assert simulation.server.all("agentpools")[0]["status"]["conditions"][0]["status"] == "True"


def test_a_quota_is_told_by_the_pool_and_the_agent_is_made_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation, tried = Simulation(Setting(min_idle=1, max_agents=1)), itertools.count()
    with monkeypatch.context() as full:
        make = simulation.server.make

        def refuse(plural: str, namespace: str, body: dict[str, object], by: str = "somebody") -> dict[str, object]:
            if plural == "pods":
                # Named anew each time, as the API server generates it before it counts.
                raise Refused(f'403 pods "default-agent-{next(tried)}" is forbidden: exceeded quota: small')
            return make(plural, namespace, body, by=by)

        full.setattr(simulation.server, "make", refuse)
        simulation.start_up(life_of(simulation))
        hear_all(simulation)
        work(simulation, POOL)
        simulation.now += 1.5
        work(simulation, POOL)
        (pool,) = simulation.server.all("agentpools")
        assert pool["status"]["conditions"][0]["reason"] == "QuotaExceeded"
        told = pool["status"]["conditions"][0]["message"]
        assert "pods is forbidden: exceeded quota: small" in told
        simulation.now += 5
        work(simulation, POOL)
        assert next(tried) > 1, "it was not tried again"
        assert simulation.server.all("agentpools")[0]["status"]["conditions"][0]["message"] == told
    assert life_of(simulation).timers[POOL] <= simulation.now + 5
    simulation.now += 5
    life_of(simulation).ring()
    life_of(simulation).finish_all()
    assert len(simulation.server.all("pods")) == 1


def test_a_pool_that_is_no_more_is_cleared_away_once_however_often_a_task_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation, taken = a_warm_pool(), list[str]()
    simulation.a_pool_is_deleted(0)
    simulation._round(may_relist=True)
    for _ in range(6):
        simulation._round(may_relist=True)
    take_away = simulation.server.take_away

    def note(plural: str, *what: Any, **more: Any) -> Any:
        taken.append(plural)
        return take_away(plural, *what, **more)

    monkeypatch.setattr(simulation.server, "take_away", note)
    for _ in range(3):
        a_new_task(simulation)
        life_of(simulation).finish_all()
    assert taken == []
