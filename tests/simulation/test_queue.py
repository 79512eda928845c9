"""The queue where tasks of several pools and namespaces meet, and where a plan waits for a person, on the simulated
cluster: everything arrives at once, and a run goes on when the test says so.
"""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_operator.worklist import Key
from terrahalt_protocol.messages import Step
from tests.simulation.operators import NAMESPACE, Life
from tests.simulation.pods import Pod
from tests.simulation.simulation import Setting, Simulation
from tests.simulation.test_races import CLAIM, POOL, hear_agents, hear_all, life_of, work

BUCKET = {"type": "s3", "config": {"bucket": "states", "key": "network.tfstate"}}


class Cluster(Simulation):
    """Pools and namespaces as the test makes them; every agent that was made is connected."""

    @property
    def life(self) -> Life:
        return life_of(self)

    def a_life(self, number: int) -> Life:
        return Life(number, self.server, lambda: self.now, (), self.counts)

    def a_pool(self, namespace: str, name: str, *, agents: int) -> None:
        spec = {"minIdle": agents, "maxAgents": agents}
        self.server.make("agentpools", namespace, {"metadata": {"name": name}, "spec": spec})

    def a_task(self, name: str, *, namespace: str = "team-a", after_s: float = 1.0, **spec: Any) -> None:
        self.now += after_s
        whole = {"action": "Apply", "workspace": "network", "source": {"inline": {"main.tf": ""}}, **spec}
        self.server.make("terraformtasks", namespace, {"metadata": {"name": name}, "spec": whole})

    def patch(self, name: str, *, namespace: str = "team-a", **spec: Any) -> None:
        self.server.change("terraformtasks", namespace, name, {"spec": spec})

    def rest(self) -> None:
        """Everything arrives, and no run goes on."""
        for _ in range(6):
            hear_all(self)
            self.life.finish_all()
            while self.a_kubelet_acts(0):
                pass
            while self.an_agent_is_dialled(0):
                pass
            while self.a_command_arrives(0):
                pass
            hear_agents(self)

    def later(self, seconds: float) -> None:
        self._advance(seconds)
        self.rest()

    def goes_on(self, name: str, step: Step | None = None) -> None:
        """To this step, or to its end."""
        if step is None:
            self.ends(name)
        else:
            pod, run_id = self.run_of(name)
            while not any(t.is_alive and (t.start.run_id, t.step) == (run_id, step) for t in pod.terraforms):
                _goes_on(pod)
            hear_agents(self)
        self.rest()

    def ends(self, name: str) -> None:
        """And its report has arrived."""
        self.ends_unheard(name)
        hear_agents(self)

    def ends_unheard(self, name: str) -> None:
        pod, run_id = self.run_of(name)
        while pod.is_run_alive(run_id):
            _goes_on(pod)

    def run_of(self, name: str) -> tuple[Pod, str]:
        """The one that is alive."""
        uid = self.task(name)["metadata"]["uid"]
        (found,) = [
            (pod, run_id)
            for pod in self.pods.values()
            for run_id, start in pod.starts.items()
            if start.task.uid == uid and pod.is_run_alive(run_id)
        ]
        return found

    @property
    def applying(self) -> list[str]:
        """Runs that were given an approved plan."""
        return [run_id for run_id, run in self.judge.runs.items() if run.applies]

    def approve(self, name: str) -> None:
        self.patch(name, approvedPlanDigest=self.status(name)["plan"]["digest"])
        self.rest()

    def task(self, name: str) -> dict[str, Any]:
        return next(task for task in self.tasks if task["metadata"]["name"] == name)

    def key(self, name: str) -> Key:
        return ("task", self.task(name)["metadata"]["uid"])

    def claimed(self) -> list[str]:
        leases = self.server.all("leases", NAMESPACE, CLAIM)
        return [lease["metadata"]["annotations"]["terrahalt.dev/task-name"] for lease in leases]

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.task(name).get("status", {})
        return found

    def phase(self, name: str) -> str:
        return str(self.status(name).get("phase", ""))

    def waits_for(self, name: str) -> str:
        assert self.phase(name) == "Queued"
        return str(self.status(name)["queue"]["waitingFor"])


def _goes_on(pod: Pod) -> None:
    if pod.jobs:
        pod.finish(0)
    else:
        assert pod.terraform_goes_on()


def a_cluster() -> Cluster:
    """Two idle agents in pool default of team-a."""
    cluster = Cluster(Setting(min_idle=2, max_agents=3))
    cluster.start_up(cluster.life)
    cluster.rest()
    return cluster


def with_two_namespaces() -> Cluster:
    cluster = a_cluster()
    cluster.a_pool("team-b", "default", agents=1)
    cluster.rest()
    return cluster


def test_the_task_of_the_highest_priority_is_next_and_a_new_priority_counts_at_once() -> None:
    cluster = a_cluster()
    cluster.a_task("holder")
    cluster.rest()
    for name, priority in (("low", -1), ("old", 0), ("young", 0), ("high", 5)):
        cluster.a_task(name, priority=priority)
    cluster.patch("young", priority=9)
    cluster.rest()
    order = []
    for _ in range(5):
        (running,) = [
            t["metadata"]["name"] for t in cluster.tasks if cluster.phase(t["metadata"]["name"]) == "Preparing"
        ]
        order.append(running)
        cluster.goes_on(running)
    assert order == ["holder", "young", "high", "old", "low"]


@pytest.mark.parametrize("is_at_rest", [True, False])
def test_of_tasks_of_one_second_the_first_is_next_whatever_their_names_are(is_at_rest: bool) -> None:
    """The operator sees them one by one, or all at once."""
    cluster = a_cluster()
    cluster.a_task("holder")
    cluster.rest()
    for number in (9, 10, 11):
        cluster.a_task(f"task-{number}", after_s=0.0)
        if is_at_rest:
            cluster.rest()
    cluster.life.relist()
    cluster.rest()
    for name in ("holder", "task-9", "task-10", "task-11"):
        assert cluster.claimed() == [name]
        cluster.goes_on(name)


def test_a_bucket_is_one_state_in_every_namespace_and_the_first_of_all_is_next() -> None:
    cluster = with_two_namespaces()
    cluster.a_task("holder", backend=BUCKET)
    cluster.rest()
    cluster.a_task("third", backend=BUCKET)
    cluster.a_task("second", namespace="team-b", backend=BUCKET, priority=1)
    cluster.rest()
    assert cluster.waits_for("second") == "workspace network, held by task team-a/holder"
    assert cluster.waits_for("third") == "workspace network, held by task holder"
    cluster.goes_on("holder")
    assert (cluster.phase("second"), cluster.phase("third")) == ("Preparing", "Queued")
    cluster.later(2)
    assert cluster.waits_for("third") == "workspace network, held by task team-b/second"
    cluster.goes_on("second")
    assert cluster.phase("third") == "Preparing"


@pytest.mark.parametrize("way", ["cancel", "timeout", "delete", "priority"])
def test_who_waits_behind_a_task_of_another_pool_goes_on_when_that_leaves_the_line(way: str) -> None:
    cluster = a_cluster()
    cluster.a_pool("team-a", "full", agents=0)
    cluster.a_task("first", poolRef={"name": "full"}, queueTimeoutSeconds=60)
    cluster.a_task("second")
    cluster.rest()
    assert cluster.waits_for("second") == "workspace network, another task is first"
    match way:
        case "cancel":
            cluster.patch("first", cancel=True)
        case "priority":
            cluster.patch("first", priority=-1)
        case "delete":
            cluster.server.take_away("terraformtasks", "team-a", "first")
        case _:
            cluster.later(60)
    cluster.rest()
    assert cluster.phase("second") == "Preparing"


def test_a_reason_that_is_no_longer_true_goes_within_two_seconds() -> None:
    cluster = a_cluster()
    cluster.a_pool("team-a", "slow", agents=0)
    cluster.a_task("first", poolRef={"name": "slow"})
    cluster.a_task("second")
    cluster.rest()
    assert cluster.waits_for("second") == "workspace network, another task is first"
    cluster.server.change("agentpools", "team-a", "slow", {"spec": {"minIdle": 1, "maxAgents": 1}})
    cluster.rest()
    assert cluster.phase("first") == "Preparing"
    seen = cluster.life.world.queueing[cluster.task("second")["metadata"]["uid"]]
    assert seen.waiting_for == "workspace network, held by task first", "not only when its own pool is looked at again"
    cluster.later(2)
    assert cluster.waits_for("second") == "workspace network, held by task first"


def test_of_three_that_supersede_what_waits_only_the_newest_is_left() -> None:
    cluster = a_cluster()
    cluster.a_task("holder")
    cluster.rest()
    for name in ("a", "b", "c"):
        cluster.a_task(name, supersede="Queued")
        cluster.rest()
    assert [cluster.phase(name) for name in ("holder", "a", "b", "c")] == ["Preparing", *["Cancelled"] * 2, "Queued"]
    assert cluster.status("a")["cancel"]["supersededBy"] == "b"
    assert {run.task_uid for run in cluster.judge.runs.values()} == {cluster.task("holder")["metadata"]["uid"]}


def test_one_that_has_to_make_way_is_not_given_to_an_agent_by_a_pool_that_looks_first() -> None:
    cluster = a_cluster()
    for name in ("holder", "older"):
        cluster.a_task(name)
        cluster.rest()
    cluster.a_task("newer", supersede="Queued")
    hear_all(cluster)
    holder, newer = cluster.key("holder"), cluster.key("newer")
    work(cluster, newer, POOL, newer)
    assert (cluster.phase("older"), cluster.phase("newer")) == ("Queued", "Queued")
    cluster.ends("holder")
    work(cluster, holder, POOL)
    assert cluster.claimed() == ["newer"]
    cluster.rest()
    assert (cluster.phase("older"), cluster.phase("newer")) == ("Cancelled", "Preparing")


def test_one_whose_time_in_the_queue_is_over_is_not_given_to_an_agent_by_a_pool_that_looks_first() -> None:
    cluster = a_cluster()
    cluster.a_task("holder")
    cluster.rest()
    cluster.a_task("late", queueTimeoutSeconds=60)
    cluster.rest()
    cluster.now += 60
    cluster.ends("holder")
    work(cluster, cluster.key("holder"), POOL)
    assert cluster.claimed() == []
    cluster.later(0)
    assert cluster.status("late")["result"]["reason"] == "QueueTimedOut"


def test_a_plan_makes_way_and_the_newer_task_runs_when_it_is_gone() -> None:
    cluster = a_cluster()
    cluster.a_task("older")
    cluster.rest()
    cluster.goes_on("older", Step.PLAN)
    cluster.a_task("newer", supersede="Planning")
    cluster.rest()
    note = "makes way for task newer, unless its apply has begun"
    assert ("Planning", "Superseded", note) in [told[1:] for told in cluster.life.told if told[0].name == "older"]
    assert cluster.phase("older") == "Cancelling"
    assert cluster.phase("newer") == "Queued"
    cluster.goes_on("older")
    assert cluster.phase("older") == "Cancelled"
    assert cluster.phase("newer") == "Preparing"


def test_an_apply_that_began_before_its_operator_knew_is_not_ended_for_a_newer_task() -> None:
    cluster = a_cluster()
    cluster.a_task("older")
    cluster.rest()
    cluster.goes_on("older", Step.PLAN)
    pod, _ = cluster.run_of("older")
    while not any(t.step is Step.APPLY for t in pod.terraforms):
        _goes_on(pod)
    cluster.a_task("newer", supersede="Planning")  # and no report has arrived
    hear_all(cluster)
    cluster.life.finish_all()
    assert cluster.status("older")["cancel"]["supersededBy"] == "newer"
    cluster.rest()
    assert cluster.judge.ends == {}
    assert cluster.phase("older") == "Applying"
    assert cluster.status("older")["cancel"]["supersededBy"] == "newer"
    cluster.goes_on("older")
    assert cluster.phase("older") == "Succeeded"
    assert cluster.phase("newer") == "Preparing"


def test_a_task_of_another_namespace_on_the_same_bucket_does_not_make_way() -> None:
    cluster = with_two_namespaces()
    cluster.a_task("older", backend=BUCKET)
    cluster.rest()
    cluster.goes_on("older", Step.PLAN)
    cluster.a_task("newer", namespace="team-b", backend=BUCKET, supersede="Planning")
    cluster.rest()
    assert cluster.phase("older") == "Planning"
    assert "cancel" not in cluster.status("older")


def with_a_plan(**spec: Any) -> Cluster:
    """Task `manual` waits for a person, and nothing runs."""
    cluster = a_cluster()
    cluster.a_task("manual", approval="Manual", **spec)
    cluster.rest()
    cluster.goes_on("manual")
    assert cluster.phase("manual") == "AwaitingApproval"
    return cluster


def test_a_plan_that_waits_is_given_to_no_agent_until_it_is_approved_and_then_once() -> None:
    cluster = with_a_plan()
    work(cluster, POOL)
    assert cluster.claimed() == cluster.applying == []
    cluster.approve("manual")
    cluster.goes_on("manual")
    assert cluster.phase("manual") == "Succeeded"
    assert len(cluster.applying) == 1


def test_a_task_that_is_approved_has_the_place_of_its_priority_and_its_age() -> None:
    cluster = with_a_plan()
    for name, priority in (("holder", 0), ("young", 0), ("urgent", 5)):
        cluster.a_task(name, priority=priority)
        cluster.rest()
    cluster.approve("manual")
    cluster.later(10)
    assert cluster.status("manual")["queue"] == {"position": 2, "waitingFor": "workspace network, held by task holder"}
    for name, following in (("holder", "urgent"), ("urgent", "manual"), ("manual", "young")):
        cluster.goes_on(name)
        assert cluster.phase(following) == "Preparing"


def test_the_time_in_the_queue_is_over_for_no_task_that_has_its_plan() -> None:
    cluster = with_a_plan(queueTimeoutSeconds=60)
    cluster.a_task("holder")
    cluster.later(61)
    assert cluster.phase("manual") == "AwaitingApproval"
    cluster.approve("manual")
    cluster.later(61)
    assert cluster.phase("manual") == "Queued"
    cluster.goes_on("holder")
    assert cluster.phase("manual") == "Preparing"


@pytest.mark.parametrize("is_approved", [False, True])
@pytest.mark.parametrize("mode", ["Queued", "Planning"])
def test_a_plan_that_is_not_applied_yet_makes_way_as_one_that_is_being_made_does(mode: str, is_approved: bool) -> None:
    cluster = with_a_plan()
    cluster.a_task("holder")
    cluster.rest()
    if is_approved:
        cluster.approve("manual")
    before = cluster.phase("manual")
    cluster.a_task("newer", supersede=mode)
    cluster.rest()
    if mode == "Queued":
        assert cluster.phase("manual") == before
        return
    status = cluster.status("manual")
    assert (status["phase"], status["result"]["reason"]) == ("Cancelled", "Superseded")
    assert status["message"] == "task newer takes its place; its plan was not applied, and nothing was changed"
    assert (status["cancel"]["supersededBy"], status["cancel"]["rung"]) == ("newer", "NotStarted")
    assert cluster.applying == []


def test_an_approved_plan_makes_way_until_its_apply_has_begun() -> None:
    cluster = with_a_plan()
    cluster.approve("manual")
    assert cluster.phase("manual") == "Preparing"
    cluster.a_task("newer", supersede="Planning")
    cluster.rest()
    assert cluster.phase("manual") == "Cancelling"
    cluster.goes_on("manual")
    assert (cluster.phase("manual"), cluster.phase("newer")) == ("Cancelled", "Preparing")
    (run,) = cluster.applying
    assert cluster.judge.runs[run].steps == []


def test_a_run_that_was_to_make_way_and_had_its_plan_already_leaves_nothing_that_waits() -> None:
    cluster = a_cluster()
    cluster.a_task("manual", approval="Manual")
    cluster.rest()
    cluster.goes_on("manual", Step.PLAN)
    cluster.ends_unheard("manual")
    cluster.a_task("newer", supersede="Planning")
    hear_all(cluster)
    cluster.life.finish_all()
    assert cluster.status("manual")["cancel"]["supersededBy"] == "newer"
    cluster.patch("newer", cancel=True)
    cluster.rest()
    status = cluster.status("manual")
    assert (status["phase"], status["result"]["reason"]) == ("Cancelled", "Superseded")
    assert "AwaitingApproval" not in [told[1] for told in cluster.life.told]
    requested = next(c for c in status["conditions"] if c["type"] == "CancelRequested")
    assert (requested["reason"], requested["message"]) == ("Superseded", "task newer takes its place")


def test_an_object_stays_while_its_plan_waits_and_goes_after_the_end_of_its_second_run() -> None:
    cluster = with_a_plan(ttlSecondsAfterFinished=60)
    cluster.later(600)
    cluster.approve("manual")
    cluster.goes_on("manual", Step.APPLY)
    cluster.goes_on("manual")
    told = [told[1] for told in cluster.life.told]
    assert told == [
        *("Assigned", "Preparing", "AwaitingApproval"),
        *("Assigned", "Preparing", "Applying", "Succeeded"),
    ]
    cluster.later(59)
    assert cluster.phase("manual") == "Succeeded"
    cluster.later(1)
    assert cluster.tasks == []


def test_a_plan_that_is_approved_after_another_task_has_changed_the_state_is_not_applied() -> None:
    cluster = with_a_plan()
    cluster.a_task("other")
    cluster.rest()
    cluster.goes_on("other")
    cluster.approve("manual")
    cluster.goes_on("manual")
    reasons = [task["status"]["result"]["reason"] for task in cluster.tasks]
    assert reasons == ["PlanExpired", "Applied"]
    assert cluster.locks.serials == {"team-a/network": 1}


def test_an_operator_that_takes_over_gives_up_a_plan_that_nobody_approves() -> None:
    cluster = with_a_plan(approvalTimeoutSeconds=90)
    cluster.an_operator_dies(0)
    cluster.an_operator_starts_where_none_is(0)
    cluster.rest()
    assert cluster.phase("manual") == "AwaitingApproval"
    cluster.later(90)
    assert cluster.status("manual")["result"]["reason"] == "ApprovalTimedOut"
    assert len(cluster.judge.runs) == 1


def test_an_ended_task_goes_by_itself_and_never_another_that_got_its_name() -> None:
    cluster = a_cluster()
    cluster.a_task("short", ttlSecondsAfterFinished=60)
    cluster.rest()
    cluster.goes_on("short")
    cluster.later(59)
    assert cluster.phase("short") == "Succeeded"
    cluster.now += 1
    cluster.server.take_away("terraformtasks", "team-a", "short")
    body = {"metadata": {"finalizers": None}}
    cluster.server.change("terraformtasks", "team-a", "short", body)
    cluster.a_task("short", after_s=0.0)
    cluster.life.ring()
    cluster.life.finish_all()  # before the watch has told
    cluster.rest()
    assert cluster.phase("short") == "Preparing"
    cluster.a_task("gone", workspace="dns", ttlSecondsAfterFinished=60)
    cluster.rest()
    cluster.goes_on("gone")
    cluster.later(60)
    assert [task["metadata"]["name"] for task in cluster.tasks] == ["short"]


def test_a_longer_life_that_was_given_after_the_end_counts() -> None:
    cluster = a_cluster()
    cluster.a_task("kept", ttlSecondsAfterFinished=60)
    cluster.rest()
    cluster.goes_on("kept")
    assert cluster.life.world._of_state == {}, "what has ended is nobody's rival"
    cluster.patch("kept", ttlSecondsAfterFinished=3600)
    cluster.rest()
    cluster.later(60)
    assert cluster.phase("kept") == "Succeeded"
    cluster.patch("kept", ttlSecondsAfterFinished=1)
    cluster.rest()
    assert cluster.tasks == []
