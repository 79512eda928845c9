"""The order of the queue, how long a task waits in it, who makes way for whom, and when an object goes.

The pure half by `decide`; the rest, where tasks of several pools and namespaces meet, on the simulated cluster.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from terrahalt_operator.core import model, queue
from terrahalt_operator.core.actions import Decision, DeleteTask, ReleaseClaim, Send, WriteStatus
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import Snapshot, Supersede, Task, TaskStatus
from terrahalt_protocol.messages import Outcome, Rung, Start, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, POD_UID, a_claim, a_report, a_snapshot, a_supersede, a_task, sparing
from tests.operator_core.simulated import Process, Run
from tests.operator_core.test_races import POOL, work
from tests.operator_core.test_simulation import Simulation

SUPERSEDED_PLAN = a_report(Step.PLAN, cancel=b.a_cancel_report(cause="Superseded", received_s=1.0))


def a_newer(mode: Supersede = Supersede.QUEUED, **changes: Any) -> Task:
    """A task of the workspace that came a second after `a_task()`, and waits."""
    newer = {"name": "network-2", "uid": "newer", "supersede": mode, "phase": model.QUEUED, "created_at": NOW - 59}
    return a_task(**{**newer, **changes})


def the_status(decision: Decision) -> TaskStatus:
    (status,) = [action.status for action in decision.actions if isinstance(action, WriteStatus)]
    return status


def after(s: Snapshot, decision: Decision) -> Snapshot:
    """What it wrote and sent is known."""
    for action in decision.actions:
        if isinstance(action, WriteStatus):
            s = dataclasses.replace(s, task=dataclasses.replace(s.task, status=action.status))
        if isinstance(action, Send) and s.session is not None:
            s = dataclasses.replace(s, session=dataclasses.replace(s.session, sent_cancel=action.command))  # type: ignore[arg-type]
    return s


# ---- the order


def test_the_queue_goes_by_priority_then_by_age_then_by_name() -> None:
    in_order = [
        a_task(name="urgent", priority=1, created_at=NOW),
        a_task(name="old", created_at=NOW - 9),
        a_task(name="young-a", created_at=NOW - 1),
        a_task(name="young-b", created_at=NOW - 1),
        a_task(name="idle", priority=-1, created_at=NOW - 99),
    ]
    by_name = sorted(in_order, key=lambda task: task.name)
    assert sorted(by_name, key=queue.place) == in_order != by_name


# ---- the time in it


def test_a_task_that_waited_too_long_ends_and_nothing_ran() -> None:
    waits = a_snapshot(task=a_task(queue_timeout_seconds=60), claimed=False, queueing=b.in_line)
    waiting = after(waits, decide(waits, NOW - 1))
    assert decide(waiting, NOW - 1).wake_after_s == 1.0
    ended = the_status(decide(waiting, NOW))
    assert (ended.phase, ended.cancel, ended.queue) == (model.FAILED, None, None)
    assert ended.result is not None
    assert (ended.result.reason, ended.result.state, ended.result.lock) == ("QueueTimedOut", "Complete", "Released")
    assert ended.message == (
        "waited in the queue for the 60 s of queueTimeoutSeconds for an agent of pool default to start; nothing ran"
    )


def test_the_time_in_the_queue_is_over_also_for_a_task_that_no_pool_has_seen() -> None:
    unseen = a_snapshot(task=a_task(queue_timeout_seconds=70), claimed=False)
    assert decide(unseen, NOW) == Decision(wake_after_s=10.0)
    assert the_status(decide(unseen, NOW + 10)).phase == model.FAILED


def test_the_time_in_the_queue_is_no_timeout_of_a_run() -> None:
    running = a_snapshot(task=a_task(queue_timeout_seconds=1, status=b.a_status("Applying")), session=b.holding())
    assert not any(isinstance(a, WriteStatus) and a.status.is_terminal for a in decide(running, NOW).actions)


# ---- who makes way


@pytest.mark.parametrize(
    ("mode", "has_agent", "makes_way"),
    [
        (Supersede.NONE, False, False),
        (Supersede.QUEUED, False, True),
        (Supersede.QUEUED, True, False),
        (Supersede.PLANNING, False, True),
        (Supersede.PLANNING, True, True),
    ],
)
def test_an_older_task_makes_way_as_far_as_the_newer_one_says(
    mode: Supersede, has_agent: bool, makes_way: bool
) -> None:
    assert queue.superseder(a_task(), [a_newer(mode)], has_agent=has_agent) == ("network-2" if makes_way else "")


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "team-b"},
        {"workspace": "dns"},
        {"created_at": NOW - 60},
        {"created_at": NOW - 61},
        {"phase": ""},
        {"cancel": True},
        {"is_deleting": True},
        {"stamp": "uid-of-the-original"},
        {"status": b.a_terminal_status()},
    ],
    ids=str,
)
def test_nobody_makes_way_for_a_task_of_others_or_an_older_one_or_one_that_will_not_run(change: dict[str, Any]) -> None:
    assert queue.superseder(a_task(), [a_newer(Supersede.PLANNING, **change)], has_agent=False) == ""


def test_a_task_makes_way_for_the_newest_one() -> None:
    newest = a_newer(name="network-3", created_at=NOW - 1, status=b.a_status("Planning"))
    assert queue.superseder(a_task(), [newest, a_newer()], has_agent=False) == "network-3"


def test_a_task_in_the_queue_that_makes_way_has_never_run_and_says_for_whom() -> None:
    ended = the_status(decide(a_snapshot(claimed=False, superseded_by="network-2"), NOW))
    assert ended.phase == model.CANCELLED
    assert ended.result is not None
    assert ended.result.reason == "Superseded"
    assert ended.message == "task network-2 takes its place; it had not been given to an agent, and nothing ran"
    assert ended.cancel is not None
    assert (ended.cancel.by, ended.cancel.superseded_by, ended.cancel.rung) == ("Superseded", "network-2", "NotStarted")
    conditions = {c.type: (c.status, c.reason, c.message) for c in ended.conditions}
    assert conditions["CancelRequested"] == ("True", "Superseded", "task network-2 takes its place")


# ---- a run that makes way: its agent decides


def test_the_cancel_for_a_newer_task_is_on_record_before_it_is_sent() -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    write, send = decide(dataclasses.replace(s, report=a_report(Step.PLAN)), NOW).actions
    assert isinstance(write, WriteStatus)
    assert send == Send(POD_UID, a_supersede())
    assert (write.status.phase, write.status.message) == (
        "Planning",
        "makes way for task network-2, unless its apply has begun",
    )
    requested = next(c for c in write.status.conditions if c.type == "CancelRequested")
    assert (requested.reason, requested.message) == ("Superseded", "task network-2 takes its place")
    assert write.status.cancel == model.CancelStatus(by="Superseded", superseded_by="network-2", requested_at=b.at(0))


def test_it_is_sent_once_on_each_connection_also_when_the_newer_task_is_gone_since() -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    s = after(s, decide(s, NOW))
    assert decide(s, NOW) == Decision()
    again = dataclasses.replace(s, session=sparing(), superseded_by="")
    assert decide(again, NOW) == Decision((Send(POD_UID, a_supersede()),))


def test_a_run_that_was_not_started_yet_is_not_started_any_more() -> None:
    fresh = dataclasses.replace(sparing(), runs=frozenset(), is_used=False)
    actions = decide(a_snapshot(session=fresh, superseded_by="network-2"), NOW).actions
    assert [type(a) for a in actions] == [WriteStatus, Send]
    assert actions[1] == Send(POD_UID, a_supersede())


def test_an_agent_that_would_end_an_apply_for_it_is_asked_for_nothing() -> None:
    s = a_snapshot(session=b.holding(), superseded_by="network-2", report=a_report(Step.PLAN))
    decision = decide(s, NOW)
    assert [type(a) for a in decision.actions] == [WriteStatus]
    assert the_status(decision).cancel is None
    start = decide(a_snapshot(superseded_by="network-2"), NOW).actions[0]
    assert isinstance(start, Send)
    assert isinstance(start.command, Start)


@pytest.mark.parametrize("session", [None, sparing()], ids=["not connected", "connected"])
def test_a_run_that_is_known_to_apply_is_left_alone(session: model.Session | None) -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Applying")), session=session, superseded_by="network-2")
    for report in (None, a_report(Step.APPLY)):
        decision = decide(dataclasses.replace(s, report=report), NOW)
        assert not any(isinstance(a, Send) for a in decision.actions)
        assert the_status(decision).cancel is None


def asked_to_make_way() -> Snapshot:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    return after(s, decide(s, NOW))


def test_a_run_whose_agent_makes_way_is_cancelling_and_ends_as_superseded() -> None:
    s = dataclasses.replace(asked_to_make_way(), report=SUPERSEDED_PLAN)
    cancelling = the_status(decide(s, NOW + 1))
    assert cancelling.phase == model.CANCELLING
    assert cancelling.cancel is not None
    assert (cancelling.cancel.sent_at, cancelling.cancel.rung) == (b.at(1), "Interrupt")
    final = b.a_final_report(Outcome.CANCELLED, cancel=SUPERSEDED_PLAN.report.cancel)
    s = dataclasses.replace(after(s, decide(s, NOW + 1)), report=final)
    ended = the_status(decide(s, NOW + 2))
    assert ended.cancel is not None
    assert (ended.phase, ended.cancel.by, ended.cancel.superseded_by) == ("Cancelled", "Superseded", "network-2")


def test_a_run_whose_agent_applies_already_goes_on_and_says_that_it_was_too_late() -> None:
    s = dataclasses.replace(asked_to_make_way(), report=a_report(Step.APPLY, message="terraform apply"))
    applying = the_status(decide(s, NOW + 1))
    assert (applying.phase, applying.message) == ("Applying", "terraform apply")
    requested = next(c for c in applying.conditions if c.type == "CancelRequested")
    assert (requested.reason, requested.message) == ("TooLate", "task network-2 takes its place; it came too late")
    reconnected = dataclasses.replace(after(s, decide(s, NOW + 1)), session=sparing())
    assert decide(reconnected, NOW + 2) == Decision(), "it is not asked again"
    ended = the_status(decide(dataclasses.replace(s, report=b.a_final_report()), NOW + 3))
    assert ended.phase == "Succeeded"


@pytest.mark.parametrize("told", [None, b.a_cancel_report(received_s=0.0)], ids=["not told", "told"])
def test_who_cancels_an_apply_that_was_spared_is_named_as_who_did(told: Any) -> None:
    spared = dataclasses.replace(asked_to_make_way(), report=a_report(Step.APPLY))
    spared = after(spared, decide(spared, NOW + 1))
    by_user = a_task(status=spared.task.status, cancel=True, generation=2)
    s = dataclasses.replace(spared, task=by_user, report=a_report(Step.APPLY, cancel=told))
    decision = decide(s, NOW + 2)
    assert any(isinstance(a, Send) and a.command == b.a_cancel() for a in decision.actions)
    cancelling = the_status(decision)
    assert cancelling.phase == model.CANCELLING
    assert cancelling.cancel is not None
    assert (cancelling.cancel.by, cancelling.cancel.superseded_by) == ("User", "")


def test_who_cancels_an_apply_that_was_spared_just_as_it_ends_is_named_too() -> None:
    by_user = a_task(status=asked_to_make_way().task.status, cancel=True, generation=2)
    ended = the_status(decide(a_snapshot(task=by_user, session=sparing(), report=b.a_final_report()), NOW + 2))
    assert ended.cancel is not None
    assert (ended.phase, ended.cancel.by) == ("Succeeded", "User")


def test_a_run_that_ended_for_a_newer_task_says_so_also_where_that_is_not_on_record_any_more() -> None:
    final = b.a_final_report(Outcome.CANCELLED, cancel=SUPERSEDED_PLAN.report.cancel)
    cancel = the_status(decide(a_snapshot(session=sparing(), report=final), NOW)).cancel
    assert cancel is not None
    assert cancel.by == "Superseded"


def test_a_timeout_that_came_before_the_newer_task_is_named_as_what_it_was() -> None:
    told = b.a_cancel_report(Rung.INTERRUPT, reason="Timeout", received_s=5.0)  # type: ignore[arg-type]
    s = dataclasses.replace(asked_to_make_way(), session=sparing(), report=a_report(Step.PLAN, cancel=told))
    decision = decide(s, NOW)
    assert not any(isinstance(action, Send) for action in decision.actions)
    cancel = the_status(decision).cancel
    assert cancel is not None
    assert (cancel.by, cancel.superseded_by) == ("Timeout", "")


# ---- the object after the end


def an_ended(**changes: Any) -> Snapshot:
    """A second ago."""
    return a_snapshot(task=a_task(status=b.a_terminal_status(), **changes), claimed=False)


def test_an_ended_task_is_deleted_when_its_time_is_over_and_stays_where_it_has_none() -> None:
    s = an_ended(ttl_seconds_after_finished=60)
    assert decide(s, NOW) == Decision(wake_after_s=59.0)
    assert decide(s, NOW + 59) == Decision((DeleteTask(s.task),))
    assert decide(an_ended(), NOW + 1e9) == Decision()


def test_a_task_is_deleted_only_after_its_claim_was_released() -> None:
    s = dataclasses.replace(an_ended(ttl_seconds_after_finished=1), claim=a_claim(), agent=b.ended_pod)
    assert [type(a) for a in decide(s, NOW).actions] == [ReleaseClaim, DeleteTask]


def test_a_task_that_has_not_ended_is_not_deleted_however_old_it_is() -> None:
    task = a_task(ttl_seconds_after_finished=1, status=b.a_status("Applying"))
    s = a_snapshot(task=task, session=b.holding(), report=a_report())
    assert not any(isinstance(a, DeleteTask) for a in decide(s, NOW + 1e9).actions)


# ---- where tasks of several pools and namespaces meet

BUCKET = {"type": "s3", "config": {"bucket": "states", "key": "network.tfstate"}}


class Cluster(Simulation):
    """Pools and namespaces as the test makes them; every agent that was made is connected."""

    def a_pool(self, namespace: str, name: str, *, agents: int) -> None:
        spec = {"minIdle": agents, "maxAgents": agents}
        self.server.make("agentpools", namespace, {"metadata": {"name": name}, "spec": spec})

    def a_task(self, name: str, *, namespace: str = "team-a", after_s: float = 1.0, **spec: Any) -> None:
        self.clock.now += after_s
        whole = {"action": "Apply", "workspace": "network", "source": {"inline": {"main.tf": ""}}, **spec}
        self.server.make("terraformtasks", namespace, {"metadata": {"name": name}, "spec": whole})

    def patch(self, name: str, *, namespace: str = "team-a", **spec: Any) -> None:
        self.server.change("terraformtasks", namespace, name, {"spec": spec})

    def rest(self) -> None:
        """Everything arrives, and no run ends by itself."""
        for _ in range(6):
            self.watch(1000)
            self.operator.finish_all()
            for pod in self.server.all("pods"):
                self._kubelet(pod)
            for process in self.processes.values():
                if process.uid in self.operator.sockets.wanted:
                    self.operator.sockets.connect(process.uid)
                while process.is_alive and process.link and process.link.to_agent:
                    process.obey(process.link.to_agent.popleft())
                while process.link and process.link.to_operator:
                    self.operator.sockets.receive(process.uid)
            self._hang_up_the_dead()
            self.check()

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.operator.ring()
        self.rest()

    def goes_on(self, name: str, step: Step | None = None) -> None:
        """To this step, or to its end."""
        if step is None:
            self.ends(name)
        else:
            process, run = self._run_of(name)
            run.step = step
            process.tell(run)
        self.rest()

    def ends(self, name: str) -> None:
        """And its report has arrived."""
        process, run = self._run_of(name)
        process.end(run, Outcome.CANCELLED if run.cancel else Outcome.SUCCEEDED)
        while process.link and process.link.to_operator:
            self.operator.sockets.receive(process.uid)

    def approve(self, name: str) -> None:
        self.patch(name, approvedPlanDigest=self.status(name)["plan"]["digest"])
        self.rest()

    def _run_of(self, name: str) -> tuple[Process, Run]:
        uid = self.task(name)["metadata"]["uid"]
        (found,) = [
            (p, r) for p in self.processes.values() for r in p.runs.values() if r.task_uid == uid and r.result is None
        ]
        return found

    def task(self, name: str) -> dict[str, Any]:
        return next(task for task in self.tasks if task["metadata"]["name"] == name)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.task(name).get("status", {})
        return found

    def phase(self, name: str) -> str:
        return str(self.status(name).get("phase", ""))

    def waits_for(self, name: str) -> str:
        assert self.phase(name) == "Queued"
        return str(self.status(name)["queue"]["waitingFor"])


def a_cluster() -> Cluster:
    """Two idle agents in pool default of team-a."""
    cluster = Cluster(min_idle=2)
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
    seen = cluster.operator.world.queueing[cluster.task("second")["metadata"]["uid"]]
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
    assert not [r for r in cluster.runs if r.task_uid != cluster.task("holder")["metadata"]["uid"]]


def test_one_that_has_to_make_way_is_not_given_to_an_agent_by_a_pool_that_looks_first() -> None:
    cluster = a_cluster()
    for name in ("holder", "older"):
        cluster.a_task(name)
        cluster.rest()
    cluster.a_task("newer", supersede="Queued")
    cluster.watch(1000)
    holder, newer = (("task", cluster.task(name)["metadata"]["uid"]) for name in ("holder", "newer"))
    work(cluster, newer, POOL, newer)
    assert (cluster.phase("older"), cluster.phase("newer")) == ("Queued", "Queued")
    cluster.ends("holder")
    work(cluster, holder, POOL)
    assert [lease["metadata"]["annotations"]["terrahalt.dev/task-name"] for lease in cluster.server.all("leases")] == [
        "newer"
    ]
    cluster.rest()
    assert (cluster.phase("older"), cluster.phase("newer")) == ("Cancelled", "Preparing")


def test_one_whose_time_in_the_queue_is_over_is_not_given_to_an_agent_by_a_pool_that_looks_first() -> None:
    cluster = a_cluster()
    cluster.a_task("holder")
    cluster.rest()
    cluster.a_task("late", queueTimeoutSeconds=60)
    cluster.rest()
    cluster.clock.now += 60
    cluster.ends("holder")
    work(cluster, ("task", cluster.task("holder")["metadata"]["uid"]), POOL)
    assert cluster.server.all("leases") == []
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
    assert ("Planning", "Superseded", note) in [told[1:] for told in cluster.operator.told if told[0].name == "older"]
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
    (run,) = cluster.runs
    run.step = Step.APPLY  # and its report has not arrived
    cluster.a_task("newer", supersede="Planning")
    cluster.rest()
    assert run.cancel is None
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
    assert not [run for run in cluster.runs if run.applies]


def test_an_approved_plan_makes_way_until_its_apply_has_begun() -> None:
    cluster = with_a_plan()
    cluster.approve("manual")
    assert cluster.phase("manual") == "Preparing"
    cluster.a_task("newer", supersede="Planning")
    cluster.rest()
    (run,) = [run for run in cluster.runs if run.applies]
    assert run.cancel is not None
    cluster.goes_on("manual")
    assert (cluster.phase("manual"), cluster.phase("newer")) == ("Cancelled", "Preparing")


def test_a_run_that_was_to_make_way_and_had_its_plan_already_leaves_nothing_that_waits() -> None:
    cluster = a_cluster()
    cluster.a_task("manual", approval="Manual")
    cluster.rest()
    cluster.goes_on("manual", Step.PLAN)
    process, run = cluster._run_of("manual")
    process.end(run, Outcome.SUCCEEDED)  # and its report has not arrived
    cluster.a_task("newer", supersede="Planning")
    cluster.watch(1000)
    cluster.operator.finish_all()
    assert cluster.status("manual")["cancel"]["supersededBy"] == "newer"
    cluster.patch("newer", cancel=True)
    cluster.rest()
    status = cluster.status("manual")
    assert (status["phase"], status["result"]["reason"]) == ("Cancelled", "Superseded")
    assert "AwaitingApproval" not in [told[1] for told in cluster.operator.told]
    requested = next(c for c in status["conditions"] if c["type"] == "CancelRequested")
    assert (requested["reason"], requested["message"]) == ("Superseded", "task newer takes its place")


def test_an_object_stays_while_its_plan_waits_and_goes_after_the_end_of_its_second_run() -> None:
    cluster = with_a_plan(ttlSecondsAfterFinished=60)
    cluster.later(600)
    cluster.approve("manual")
    cluster.goes_on("manual", Step.APPLY)
    cluster.goes_on("manual")
    told = [told[1] for told in cluster.operator.told]
    assert told == [
        *("Assigned", "Preparing", "AwaitingApproval"),
        *("Assigned", "Preparing", "Applying", "Succeeded"),
    ]
    cluster.later(59)
    assert cluster.phase("manual") == "Succeeded"
    cluster.later(1)
    assert cluster.tasks == []


def test_an_operator_that_takes_over_gives_up_a_plan_that_nobody_approves() -> None:
    cluster = with_a_plan(approvalTimeoutSeconds=90)
    cluster.restart_operator(0)
    cluster.rest()
    assert cluster.phase("manual") == "AwaitingApproval"
    cluster.later(90)
    assert cluster.status("manual")["result"]["reason"] == "ApprovalTimedOut"
    assert len(cluster.runs) == 1


def test_an_ended_task_goes_by_itself_and_never_another_that_got_its_name() -> None:
    cluster = a_cluster()
    cluster.a_task("short", ttlSecondsAfterFinished=60)
    cluster.rest()
    cluster.goes_on("short")
    cluster.later(59)
    assert cluster.phase("short") == "Succeeded"
    cluster.clock.now += 1
    cluster.server.take_away("terraformtasks", "team-a", "short")
    body = {"metadata": {"finalizers": None}}
    cluster.server.change("terraformtasks", "team-a", "short", body)
    cluster.a_task("short", after_s=0.0)
    cluster.operator.ring()
    cluster.operator.finish_all()  # before the watch has told
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
    assert cluster.operator.world._of_state == {}, "what has ended is nobody's rival"
    cluster.patch("kept", ttlSecondsAfterFinished=3600)
    cluster.rest()
    cluster.later(60)
    assert cluster.phase("kept") == "Succeeded"
    cluster.patch("kept", ttlSecondsAfterFinished=1)
    cluster.rest()
    assert cluster.tasks == []
