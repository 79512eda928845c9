"""Carries out one round's plan: creates its tasks, makes its troubles at their moments, and sees everything end.

Tells what it did and judges nothing; a trouble that finds nothing to be done to (no agent yet, no
provider any more) is told as missed. Called by `test_random_troubles` and `test_chaos`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import CANCEL, RunningTask, a_task, start
from tests.soak.faults import Faults
from tests.soak.plan import COUNTED, OF_API, Plan, PlannedTask, Step, Trouble

ENDED_WITHIN_S = 180.0
"""A run whose workspace is locked tries for 60 s; a node that was frozen is back within some 15 s."""

PROGRAMS = {
    Trouble.KILL_TERRAFORM: ("terraform", "tofu"),
    Trouble.KILL_PROVIDER: ("terraform-provider-",),
}
"""Of those that are done to a process of the run itself."""


@dataclass(frozen=True)
class Life:
    """One object of a planned task: there are two where it was deleted and created anew."""

    number: int
    planned: PlannedTask
    counter: str
    task: RunningTask


@dataclass
class Round:
    installation: Installation
    plan: Plan
    lives: list[Life] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)
    """Without those that were missed."""
    diary: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Returns when every task has ended; raises AssertionError where one does not."""
        workspaces = [self.installation.name(f"round-{self.plan.number}") for _ in self.plan.tasks]
        planned = [
            (number, task, self.installation.name(f"round-{self.plan.number}-{number}"), workspaces[task.workspace])
            for number, task in enumerate(self.plan.tasks)
        ]
        first = [each for each in planned if not each[1].at_s]
        objects = [self._object(name, workspace, task, name) for _, task, name, workspace in first]
        for (number, task, name, _), made in zip(first, start(self.installation, *objects), strict=True):
            self.lives.append(Life(number, task, name, made))
        self._began = time.monotonic()
        acts = [partial(self._make, step) for step in self.plan.steps]
        acts += [partial(self._create_later, *each) for each in planned if each[1].at_s]
        acts += [partial(self._approve, life) for life in self.lives if life.planned.needs_approval]
        if acts:
            with ThreadPoolExecutor(len(acts)) as pool:
                under_way = [pool.submit(act) for act in acts]
            for act in under_way:
                act.result()
        self._end_all()

    @property
    def faults(self) -> Faults:
        return Faults(self.installation, any(step.trouble in OF_API for step in self.plan.steps))

    def hit_by(self, number: int) -> set[Trouble]:
        """What was done to this task, to its node, and to everything."""
        nodes = self.nodes_of(number)
        return {
            step.trouble
            for step in self.done
            if step.task == number or (step.task is None and (not step.node or step.node in nodes))
        }

    def nodes_of(self, number: int) -> set[str]:
        """Where its runs' pods were."""
        found = set()
        for task in (life.task for life in self.lives if life.number == number):
            for name in {s.status.get("agent", {}).get("podName", "") for s in task.history}:
                pods = self.installation.timeline.history("pods", task.namespace, name)
                found |= {str(pod.object["spec"].get("nodeName", "")) for pod in pods}
        return found

    def story(self) -> str:
        return "\n".join([str(self.plan), "what was done:", *(f"  {line}" for line in self.diary)])

    def clear_away(self) -> None:
        """All that it has left in the namespace, for a trial of many rounds."""
        self.faults.kubectl("--namespace", SOAK, "delete", "terraformtasks,secrets,leases", "--all", "--wait=false")

    def _object(self, name: str, workspace: str, planned: PlannedTask, counter: str) -> Json:
        text = planned.shape.text.replace(COUNTED, counter)
        pool = {"name": planned.pool}
        return a_task(name, namespace=SOAK, workspace=workspace, text=text, poolRef=pool, **dict(planned.spec))

    def _make(self, step: Step) -> None:
        time.sleep(max(0.0, self._began + step.at_s - time.monotonic()))
        begun_s = time.monotonic() - self._began
        done = self._carry_out(step)
        ended_s = time.monotonic() - self._began
        if done is not None:
            self.done.append(done)
        self.diary.append(f"{begun_s:.3f}..{ended_s:.3f} {done or step}{'' if done else ' (missed)'}")

    def _carry_out(self, step: Step) -> Step | None:
        """What was done; None: nothing."""
        if step.task is None:
            is_of_cluster = step.node or step.trouble in OF_API
            is_done = self.faults.of_cluster(step) if is_of_cluster else self.faults.of_operator(step)
            return step if is_done else None
        if (life := self.victim(step)) is None:
            return None
        return replace(step, task=life.number) if self._trouble_task(step, life) else None

    def victim(self, step: Step) -> Life | None:
        """The last life of its task; with patience the first that has what it is done to, its own task's before."""
        own = [life for life in self.lives if life.number == step.task][-1:]
        if not step.patience_s:
            return next(iter(own), None)
        programs = PROGRAMS.get(step.trouble, ())

        def look() -> Life | None:
            return next((life for life in [*own, *self.lives] if self._can_be_hit(life.task, programs)), None)

        with suppress(AssertionError):
            return self.installation.timeline.until(look, step.patience_s, "something to do it to")
        return None

    def _can_be_hit(self, task: RunningTask, programs: tuple[str, ...]) -> bool:
        """It has an agent, and if a process of its run is meant, that too."""
        if not self._has_agent(task) or not programs:
            return self._has_agent(task)
        alive = [process.command for process in task.processes if process.gone is None]
        return any(_is_called(command, program) for command in alive for program in programs)

    def _trouble_task(self, step: Step, life: Life) -> bool:
        task = life.task
        match step.trouble:
            case Trouble.CANCEL:
                return self._patch(task, CANCEL)
            case Trouble.CANCEL_TWICE:
                with ThreadPoolExecutor(2) as pool:
                    return all(pool.map(lambda patch: self._patch(task, patch), (CANCEL, CANCEL)))
            case Trouble.FORCE:
                return self._patch(task, CANCEL) and self._patch(task, '{"spec":{"cancelMode":"Force"}}')
            case Trouble.SHORTEN:
                return self._patch(task, CANCEL) and self._patch(task, '{"spec":{"cancelGraceSeconds":1}}')
            case Trouble.DELETE:
                return self._delete(task)
            case Trouble.RECREATE:
                return self._recreate(life)
        return self._has_agent(task) and self._trouble_agent(step, task)

    def _trouble_agent(self, step: Step, task: RunningTask) -> bool:
        match step.trouble:
            case Trouble.DELETE_POD:
                return self.faults.delete_pod(SOAK, task.pod_name)
            case Trouble.FORCE_DELETE_POD:
                return self.faults.delete_pod(SOAK, task.pod_name, "--force", "--grace-period=0")
            case Trouble.EVICT:
                return self.faults.evict(SOAK, task.pod_name)
            case Trouble.KILL_AGENT:
                return self._kill(task, "terrahalt_agent")
            case Trouble.KILL_POD:
                return self._kill(task, "")
            case Trouble.KILL_TERRAFORM | Trouble.KILL_PROVIDER:
                return self._kill(task, *PROGRAMS[step.trouble])
            case Trouble.FREEZE_AGENT:
                agent = next(iter(self._processes(task, "terrahalt_agent")), None)
                return self.faults.freeze(agent, step.lasts_s)
            case Trouble.CUT_AGENT:
                return self.faults.cut_off(task.pod_uid, step.lasts_s)
        raise AssertionError(f"not of a task: {step}")

    # ---- troubles

    def _patch(self, task: RunningTask, patch: str) -> bool:
        where = ("--namespace", SOAK, "patch", "terraformtask", task.name)
        return self.faults.kubectl(*where, "--type", "merge", "-p", patch)

    def _delete(self, task: RunningTask) -> bool:
        return self.faults.kubectl("--namespace", SOAK, "delete", "terraformtask", task.name, "--wait=false")

    def _recreate(self, life: Life) -> bool:
        task = life.task
        if not self._delete(task):
            return False
        task.until_gone(ENDED_WITHIN_S)
        counter = self.installation.name(f"round-{self.plan.number}-again")
        (made,) = start(self.installation, self._object(task.name, task.workspace, life.planned, counter))
        again = Life(life.number, life.planned, counter, made)
        self.lives.append(again)
        if again.planned.needs_approval:
            self._approve(again)
        return True

    def _has_agent(self, task: RunningTask) -> bool:
        return bool(task.pod_name) and task.end is None

    def _kill(self, task: RunningTask, *programs: str) -> bool:
        return self.installation.nodes.kill_at_once(self._processes(task, *programs)) > 0

    def _processes(self, task: RunningTask, *programs: str) -> list[Json]:
        """Of its pod, whose program or module has such a name; of an empty name: all of them."""
        lives = self.installation.nodes.processes(pod_uid=task.pod_uid)
        if "" in programs:
            return lives
        return [p for p in lives if any(_is_called(p["command"], program) for program in programs)]

    def _create_later(self, number: int, planned: PlannedTask, name: str, workspace: str) -> None:
        time.sleep(max(0.0, self._began + planned.at_s - time.monotonic()))
        (made,) = start(self.installation, self._object(name, workspace, planned, name))
        self.lives.append(Life(number, planned, name, made))
        self.diary.append(f"{time.monotonic() - self._began:.3f} task {number} was created")

    def _approve(self, life: Life) -> None:
        """As soon as its plan waits for that."""
        task = life.task

        def waits_or_is_over() -> bool:
            return task.phase == "AwaitingApproval" or task.end is not None or _is_gone(task)

        task.until(waits_or_is_over, ENDED_WITHIN_S, "its plan")
        if task.phase == "AwaitingApproval":
            digest = task.status["plan"]["digest"]
            is_done = self._patch(task, json.dumps({"spec": {"approvedPlanDigest": digest}}))
            said = "approved" if is_done else "gone before its approval"
            self.diary.append(f"{time.monotonic() - self._began:.3f} task {life.number} was {said}")

    # ---- the end

    def _end_all(self) -> None:
        """What would go on for minutes is cancelled; a lock that was left is freed, as a person would."""
        for life in self.lives:
            if not life.planned.shape.ends_by_itself:
                self._patch(life.task, CANCEL)
        waiting = list(self.lives)
        deadline = time.monotonic() + ENDED_WITHIN_S
        while waiting:

            def one_ended() -> list[Life] | None:
                return [life for life in waiting if life.task.end is not None or _is_gone(life.task)] or None

            ended = self.installation.timeline.until(
                one_ended,
                max(0.0, deadline - time.monotonic()),
                lambda: "the end of\n" + "\n".join(life.task.story() for life in waiting),
            )
            for life in ended:
                waiting.remove(life)
                if life.task.status.get("result", {}).get("lock", "Released") != "Released":
                    # The lock is judged by what it was until the workspace was given back.
                    evidence.assert_claim_released(life.task)
                    self._free(life.task)

    def _free(self, task: RunningTask) -> None:
        holder = task.state_lock_holder()
        if not holder:
            return
        patch = [
            {"op": "test", "path": "/spec/holderIdentity", "value": holder},
            {"op": "remove", "path": "/spec/holderIdentity"},
        ]
        lease = f"lock-tfstate-default-{task.workspace}-tf"
        self.faults.kubectl("--namespace", SOAK, "patch", "lease", lease, "--type=json", "-p", json.dumps(patch))
        self.diary.append(f"{time.monotonic() - self._began:.3f} freed the lock {holder} that {task.name} left")


def _is_gone(task: RunningTask) -> bool:
    """Deleted before it had a phase that ends."""
    return bool(task.history) and task.history[-1].is_deleted


def _is_called(command: list[str], program: str) -> bool:
    if not command:
        return False
    name = command[0].rpartition("/")[2]
    return name.startswith(program) if program.endswith("-") else name == program or program in command[1:]
