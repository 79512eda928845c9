"""The real operator on a simulated cluster, with everything that can go wrong in any order.

Seed of the simulator in tests/simulation. A history is a list of moves (users, watch events, answers of
the API server, sockets, kubelets, lost nodes, crashes of the operator), each with a number that picks
what it is about. The invariants are asked after each move; at the end the faults stop and every task
has to end. A history that fails is shrunk by hypothesis and printed; `Simulation().play(...)` repeats it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrahalt_operator.adapters.objects import claim as claim_of
from terrahalt_operator.core.model import AWAITING_APPROVAL, TERMINAL
from terrahalt_operator.core.status import timestamp
from terrahalt_operator.effects import Effects
from terrahalt_operator.errors import ClusterError, Unreachable
from terrahalt_operator.reconciler import Reconciler
from terrahalt_operator.worklist import Key
from terrahalt_operator.world import World
from terrahalt_protocol.messages import Outcome, Step
from tests.operator_core.simulated import ApiServer, Json, Pause, Process, Run, Sockets, digest_of

RELIST = ("relist",)
MANUAL: Json = {"approval": "Manual", "approvalTimeoutSeconds": 90}
MANY_KINDS: list[Json] = [
    {},
    {"supersede": "Planning"},
    {"supersede": "Planning", **MANUAL},
    {"supersede": "Queued"},
    {"priority": 1, **MANUAL},
    {"queueTimeoutSeconds": 60},
    {"ttlSecondsAfterFinished": 30, "queueTimeoutSeconds": 60, **MANUAL},
    {},
]


class Clock:
    now = 1_750_000_000.0

    def timestamp(self) -> str:
        return timestamp(self.now)


class Operator:
    """One life of the operator: its memory, its sockets, and its workers stopped at some call each."""

    def __init__(self, server: ApiServer, processes: dict[str, Process], clock: Clock, epoch: int) -> None:
        self._clock = clock
        self.woken: dict[Key, None] = {}
        self.timers: dict[Key, float] = {}
        self.workers: dict[Key, Coroutine[Any, Any, None]] = {}
        self.told: list[tuple[Any, ...]] = []
        """Events, in order: task, phase, reason, note."""
        self.run_ids = (f"run-{epoch}-{n}" for n in range(1_000_000))
        trust = SimpleNamespace(report_secret=b"secret", ca_pem="CA")
        leadership = SimpleNamespace(epoch=epoch)
        worklist = SimpleNamespace(wake=self.wake, wake_after=self.wake_after)
        common: dict[str, Any] = {"cluster": server, "namespace": "ops", "clock": lambda: clock.now}

        def sockets(world: World) -> Any:
            self.sockets = Sockets(processes, clock, world.agent_changed)
            return self.sockets

        self.world = World(
            agents=sockets,
            trust=cast(Any, trust),
            leadership=cast(Any, leadership),
            watched=(),
            agent_images={"Terraform": "agent:1"},
            wake=self.wake,
            **common,
        )
        effects = Effects(
            world=self.world,
            worklist=cast(Any, worklist),
            operator_ca="CA",
            new_run_id=lambda: next(self.run_ids),
            tell=lambda *told: self.told.append(told),
            **common,
        )
        self._reconciler = Reconciler(
            world=self.world,
            effects=effects,
            worklist=cast(Any, worklist),
            leadership=cast(Any, leadership),
            clock=lambda: clock.now,
        )

    def wake(self, key: Key) -> None:
        self.woken[key] = None

    def wake_after(self, key: Key, delay_s: float) -> None:
        at = self._clock.now + delay_s
        self.timers[key] = min(at, self.timers.get(key, at))

    def ring(self) -> None:
        for key in [key for key, at in self.timers.items() if at <= self._clock.now]:
            del self.timers[key]
            self.wake(key)

    def begin(self, key: Key) -> None:
        if key not in self.workers and key in self.woken:
            del self.woken[key]
            self.workers[key] = self._reconciler.work(key)
            self.go_on(key)

    def relist(self) -> None:
        if RELIST not in self.workers:
            self.workers[RELIST] = self.world.relist()

    def go_on(self, key: Key, error: Exception | None = None) -> None:
        """To the next call, or to the end; an error is tried again, as the worklist does."""
        try:
            step = self.workers[key].throw(error) if error else self.workers[key].send(None)
            assert isinstance(step, Pause)
        except StopIteration:
            del self.workers[key]
        except ClusterError:
            del self.workers[key]
            if key != RELIST:
                self.wake(key)

    def finish_all(self) -> None:
        for _ in range(10_000):
            for key in list(self.woken):
                self.begin(key)
            if not self.workers:
                return
            for key in list(self.workers):
                self.go_on(key)
        raise AssertionError(f"the operator never rests: {self.woken} {self.workers}")


class Simulation:
    """One pool, the API server, the kubelets and agents, and the operator of the moment."""

    operator: Operator

    def __init__(self, *, min_idle: int = 0) -> None:
        self.clock = Clock()
        self.server = ApiServer(self.clock)
        self.processes: dict[str, Process] = {}
        self.events = deque[tuple[str, bool, Json]]()
        self.ended: dict[str, str] = {}
        """Task UID -> the terminal phase that was seen first."""
        self.manual: set[str] = set()
        """UIDs of tasks that need an approval."""
        self.abandoned: dict[str, str] = {}
        """Task UID -> the pod that it was abandoned in."""
        self.epoch = 0
        spec = {"minIdle": min_idle, "maxAgents": 3}
        self.server.make("agentpools", "team-a", {"metadata": {"name": "default"}, "spec": spec})
        self.restart_operator(0)

    def play(self, *moves: tuple[str, int]) -> None:
        for name, pick in moves:
            getattr(self, name)(pick)
            self.check()

    # ---- people

    def create_task(self, pick: int) -> None:
        if len(self.tasks) < 4:
            workspace = "dns" if pick == 0 else "network"
            spec = {
                "action": "Apply",
                "workspace": workspace,
                "source": {"inline": {"main.tf": ""}},
                **MANY_KINDS[pick],
            }
            self.clock.now += 1.0  # of two tasks of one second, neither takes the other's place
            self.server.make("terraformtasks", "team-a", {"metadata": {"generateName": "t-"}, "spec": spec})

    def approve_task(self, pick: int) -> None:
        plans = [(t, t.get("status", {}).get("plan") or {}) for t in self.tasks]
        if found := chosen([(t, plan["digest"]) for t, plan in plans if plan.get("digest")], pick):
            task, digest = found
            patch = {"spec": {"approvedPlanDigest": digest}}
            self.server.change("terraformtasks", "team-a", task["metadata"]["name"], patch)

    def cancel_task(self, pick: int) -> None:
        if task := chosen(self.tasks, pick):
            self.server.change("terraformtasks", "team-a", task["metadata"]["name"], {"spec": {"cancel": True}})

    def abandon_task(self, pick: int) -> None:
        if task := chosen(self.tasks, pick):
            patch = {"spec": {"cancel": True, "cancelMode": "Abandon"}}
            self.server.change("terraformtasks", "team-a", task["metadata"]["name"], patch)

    def delete_task(self, pick: int) -> None:
        if task := chosen(self.tasks, pick):
            self.server.take_away("terraformtasks", "team-a", task["metadata"]["name"])

    # ---- the operator

    def restart_operator(self, _: int) -> None:
        """SIGKILL at whatever call each worker had reached; the next one lists all before it works."""
        if self.epoch:
            for uid in list(self.operator.sockets.seen):
                self.operator.sockets.cut(uid)
            for worker in self.operator.workers.values():
                worker.close()
        self.epoch += 1
        self.operator = Operator(self.server, self.processes, self.clock, self.epoch)
        self.operator.relist()
        while self.operator.workers:
            self.operator.go_on(RELIST)
        self.events.clear()
        self.server.events.clear()

    def relist(self, _: int) -> None:
        self.operator.relist()

    def begin_work(self, pick: int) -> None:
        if key := chosen(list(self.operator.woken), pick):
            self.operator.begin(key)

    def go_on_working(self, pick: int) -> None:
        if key := chosen(list(self.operator.workers), pick):
            for _ in range(1 + pick):
                if key in self.operator.workers:
                    self.operator.go_on(key)

    def lose_a_request_or_its_answer(self, pick: int) -> None:
        if key := chosen(list(self.operator.workers), pick):
            self.operator.go_on(key, Unreachable("the API server did not answer"))

    def watch(self, count: int) -> None:
        self.events.extend(self.server.events)
        self.server.events.clear()
        for _ in range(min(1 + count, len(self.events))):
            plural, is_gone, obj = self.events.popleft()
            self.operator.world.see(plural, is_gone, obj)

    def time_passes(self, _: int) -> None:
        self.clock.now += 30.0
        self.operator.ring()

    # ---- agents and their connections

    def connect(self, pick: int) -> None:
        if (process := self._process(pick)) and process.uid in self.operator.sockets.wanted:
            self.operator.sockets.connect(process.uid)

    def cut(self, pick: int) -> None:
        if process := self._process(pick):
            self.operator.sockets.cut(process.uid)

    def a_command_arrives(self, pick: int) -> None:
        process = self._process(pick)
        if process is None or not process.is_alive:
            return
        if process.late and pick % 2:
            process.obey_late()
        elif process.link and process.link.to_agent:
            process.obey(process.link.to_agent.popleft())
        self._hang_up_the_dead()

    def a_report_arrives(self, pick: int) -> None:
        if process := self._process(pick):
            self.operator.sockets.receive(process.uid)

    def a_run_goes_on_or_ends(self, pick: int) -> None:
        process = self._process(pick)
        for run in [r for r in process.runs.values() if r.is_alive] if process else []:
            if run.step is Step.PREPARE and run.cancel is None:
                run.step = Step.PLAN if run.keeps_plan else Step.APPLY
                process.tell(run) if process else None
            elif process:
                likely = Outcome.CANCELLED if run.cancel else Outcome.SUCCEEDED
                process.end(run, likely if pick < 5 else Outcome.FAILED)

    def an_agent_is_killed(self, pick: int) -> None:
        if process := self._process(pick):
            process.die()
            self._hang_up_the_dead()

    def a_node_is_lost(self, pick: int) -> None:
        """And PodGC gives its pod up; the container may be running on all the same."""
        process = self._process(pick)
        if process and process.is_alive and ("pods", "team-a", process.name) in self.server.objects:
            process.is_on_lost_node = True
            self.operator.sockets.cut(process.uid)
            self.server.change("pods", "team-a", process.name, {"status": {"phase": "Failed"}}, subresource="status")
            self.server.take_away("pods", "team-a", process.name)

    def a_kubelet_acts(self, pick: int) -> None:
        if pod := chosen(self.server.all("pods"), pick):
            self._kubelet(pod)

    def _kubelet(self, pod: Json) -> None:
        meta, process = pod["metadata"], self.processes.get(pod["metadata"]["uid"])
        container = {"name": "agent", "containerID": f"containerd://{meta['uid']}"}
        if process is None:
            if "deletionTimestamp" not in meta:
                self.processes[meta["uid"]] = Process(pod)
                self._report_container(pod, {**container, "state": {"running": {}}}, "Running")
        elif process.is_on_lost_node:
            return
        elif not process.is_alive:
            terminated = {"containerID": container["containerID"], "exitCode": 137, "message": process.message}
            self._report_container(pod, {**container, "state": {"terminated": terminated}}, "Failed")
        elif "deletionTimestamp" in meta:
            process.terminate()
            self._hang_up_the_dead()

    def _report_container(self, pod: Json, container: Json, phase: str) -> None:
        status = {"phase": phase, "podIP": "10.0.0.1", "containerStatuses": [container]}
        meta = pod["metadata"]
        self.server.change("pods", meta["namespace"], meta["name"], {"status": status}, subresource="status")

    def _hang_up_the_dead(self) -> None:
        for process in self.processes.values():
            if not process.is_alive:
                self.operator.sockets.cut(process.uid)

    # ---- what must hold after each move

    def check(self) -> None:
        leases = self.server.all("leases")
        self._note_abandoned(leases)
        self.manual |= {t["metadata"]["uid"] for t in self.tasks if t["spec"].get("approval") == "Manual"}
        # What a person has abandoned may live on, and these three do not ask about it; nobody else may.
        alive = [run for run in self.runs if run.is_alive and run.task_uid not in self.abandoned]
        for task in self.tasks:
            uid, phase = task["metadata"]["uid"], task.get("status", {}).get("phase", "")
            if phase == AWAITING_APPROVAL:
                assert uid not in {run.task_uid for run in alive if run.keeps_plan}, "it waits, and its run is alive"
            if phase in TERMINAL:
                assert uid not in {run.task_uid for run in alive}, "invariant 1: ended, and its run is alive"
            assert phase == self.ended.get(uid, phase), "invariant 3: a terminal phase changed"
            if phase in TERMINAL:
                self.ended[uid] = phase
        assert not [w for w, count in Counter(r.workspace for r in alive).items() if count > 1], "invariant 2: two runs"
        claimed = {lease["spec"]["holderIdentity"] for lease in leases}
        assert {run.run_id for run in alive} <= claimed, "invariant 2: a run is alive without its claim"
        superseded = {run.task_uid for run in self.runs if run.superseded_by}
        for task in self.tasks:
            if task["metadata"]["uid"] in superseded:
                assert task["status"]["cancel"]["by"] == "Superseded", "sent before it was on record"
        started = Counter((run.task_uid, run.keeps_plan) for run in self.runs)
        assert not [uid for uid, count in started.items() if count > 1], "invariant 6: a task ran twice"
        plans = {digest_of(run): run for run in self.runs if run.keeps_plan and run.result and run.result.kept_plan}
        approvals = {t["metadata"]["uid"]: t["spec"].get("approvedPlanDigest") for t in self.tasks}
        for run in self.runs:
            if run.applies:
                assert plans[run.applies].task_uid == run.task_uid, "applied what another task has planned"
                assert approvals.get(run.task_uid, run.applies) == run.applies, "applied what nobody has approved"
            else:
                assert run.keeps_plan or run.task_uid not in self.manual, "applied without an approval"
        deleted = {p.uid for p in self.processes.values() if p.uid in self.server.deleted}
        busy = {p.uid for p in self.processes.values() for run in p.runs.values() if run in alive}
        assert not deleted & busy, "the operator deleted a busy agent"
        for pod in self.server.all("pods"):
            uid = pod["metadata"]["uid"]
            if uid in self.abandoned.values() and not pod["metadata"].get("finalizers"):
                is_given_up = pod["status"]["phase"] == "Failed"
                assert is_given_up or not self.processes[uid].is_alive, "let go before its end was seen"

    def _note_abandoned(self, leases: list[Json]) -> None:
        """And nobody gets an agent whose run was abandoned."""
        for task in self.tasks:
            status = task.get("status", {})
            if status.get("result", {}).get("reason") == "Abandoned":
                assert status["phase"] == "Failed", "an abandoned task is called something else"
                assert task["spec"].get("cancelMode") == "Abandon", "abandoned, though nobody has"
                self.abandoned[task["metadata"]["uid"]] = status["agent"]["podUID"]
        for lease in leases:
            claim = claim_of(lease)
            if claim.pod_uid in self.abandoned.values():
                assert claim.task_uid in self.abandoned, "an abandoned agent was given another task"

    def until_a_plan_waits(self, *, is_approved: bool) -> None:
        """Of a task that is created first."""
        self.create_task(MANY_KINDS.index({"priority": 1, **MANUAL}))
        while not any(task.get("status", {}).get("plan", {}).get("digest") for task in self.tasks):
            self._let_everything_arrive()
        self.check()
        if is_approved:
            self.approve_task(0)

    def settle(self) -> None:
        """The faults stop: nodes come back, messages arrive, runs end. Then every task ends too."""
        version = ""
        while version != (version := self.server.version):
            for _ in range(4):
                self._let_everything_arrive()
                self.approve_task(0)
                self.check()
        unfinished = [t for t in self.tasks if t.get("status", {}).get("phase") not in TERMINAL]
        assert not unfinished, "invariant 5: a task never ends"
        assert not [t for t in self.tasks if "deletionTimestamp" in t["metadata"]], "a deleted task never goes"
        assert not self.server.all("leases"), "a claim is never released"
        assert sum(process.is_alive for process in self.processes.values()) <= 3

    def _let_everything_arrive(self) -> None:
        for process in self.processes.values():
            process.is_on_lost_node = False
            if process.uid in self.operator.sockets.wanted:
                self.operator.sockets.connect(process.uid)
            while process.is_alive and process.late:
                process.obey_late()
            while process.is_alive and process.link and process.link.to_agent:
                process.obey(process.link.to_agent.popleft())
            for run in process.runs.values():
                if run.is_alive:
                    process.end(run, Outcome.SUCCEEDED)
            while process.link and process.link.to_operator:
                self.operator.sockets.receive(process.uid)
        self._hang_up_the_dead()
        for pod in self.server.all("pods"):
            self._kubelet(pod)
        self.watch(10_000)
        self.operator.finish_all()
        self.clock.now += 61.0
        self.operator.ring()
        self.operator.relist()
        self.operator.finish_all()

    # ---- what there is

    @property
    def tasks(self) -> list[Json]:
        return self.server.all("terraformtasks")

    @property
    def runs(self) -> list[Run]:
        """Every real run of every agent, tombstones left out."""
        return [run for process in self.processes.values() for run in process.runs.values() if run.task_uid]

    def _process(self, pick: int) -> Process | None:
        return chosen(list(self.processes.values()), pick)


T = TypeVar("T")


def chosen(things: list[T], pick: int) -> T | None:
    return things[pick % len(things)] if things else None


OFTEN = {"go_on_working": 14, "begin_work": 8, "watch": 6, "a_command_arrives": 6, "a_report_arrives": 6}
SOMETIMES = {"a_kubelet_acts": 6, "connect": 5, "create_task": 3, "a_run_goes_on_or_ends": 3, "approve_task": 2}
SELDOM = ("delete_task", "relist", "time_passes", "cut", "lose_a_request_or_its_answer", "restart_operator")
DISASTERS = ("an_agent_is_killed", "a_node_is_lost", "abandon_task")
WEIGHTED = [n for n, weight in (OFTEN | SOMETIMES).items() for _ in range(2 * weight)]
WEIGHTED += [*SELDOM, *SELDOM, *DISASTERS, "cancel_task", "cancel_task"]
MOVES = st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 7))


@settings(max_examples=40)
@given(st.integers(0, 2), st.sampled_from([None, False, True]), st.lists(MOVES, min_size=150, max_size=500))
def test_the_invariants_hold_in_every_history_and_every_task_ends(
    min_idle: int, begins_with_approved_plan: bool | None, moves: list[tuple[str, int]]
) -> None:
    simulation = Simulation(min_idle=min_idle)
    if begins_with_approved_plan is not None:
        simulation.until_a_plan_waits(is_approved=begins_with_approved_plan)
    simulation.play(*moves)
    simulation.settle()


@pytest.mark.parametrize("seed", range(20))
def test_the_same_with_histories_that_are_longer_than_hypothesis_likes(seed: int) -> None:
    chance = random.Random(seed)
    simulation = Simulation(min_idle=seed % 3)
    if seed % 2:
        simulation.until_a_plan_waits(is_approved=seed % 4 == 1)
    simulation.play(*((chance.choice(WEIGHTED), chance.randrange(8)) for _ in range(600)))
    simulation.settle()
