"""Carries out one round's plan: creates its tasks, makes its troubles at their moments, and sees everything end.

Tells what it did and judges nothing; a trouble that finds nothing to be done to (no agent yet, no
provider any more) is told as missed. Called by `test_random_troubles`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import assert_never

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import CANCEL, RunningTask, a_task, start
from tests.soak.plan import COUNTED, Plan, PlannedTask, Step, Trouble

ENDED_WITHIN_S = 180.0
"""A run whose workspace is locked tries for 60 s; a node that was frozen is back within some 15 s."""


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
        planned = list(enumerate(self.plan.tasks))
        names = [self.installation.name(f"round-{self.plan.number}-{number}") for number, _ in planned]
        objects = [
            self._object(name, workspaces[task.workspace], task, name)
            for (_, task), name in zip(planned, names, strict=True)
        ]
        for (number, task), name, made in zip(planned, names, start(self.installation, *objects), strict=True):
            self.lives.append(Life(number, task, name, made))
        self._began = time.monotonic()
        if self.plan.steps:
            with ThreadPoolExecutor(len(self.plan.steps)) as pool:
                troubles = [pool.submit(self._make, step) for step in self.plan.steps]
            for trouble in troubles:
                trouble.result()
        self._end_all()

    def hit_by(self, number: int) -> set[Trouble]:
        """What was done to this task, and to everything."""
        return {step.trouble for step in self.done if step.task in (None, number)}

    def story(self) -> str:
        return "\n".join([str(self.plan), "what was done:", *(f"  {line}" for line in self.diary)])

    def _object(self, name: str, workspace: str, planned: PlannedTask, counter: str) -> Json:
        text = planned.shape.text.replace(COUNTED, counter)
        pool = {"name": planned.pool}
        return a_task(name, namespace=SOAK, workspace=workspace, text=text, poolRef=pool)

    def _make(self, step: Step) -> None:
        time.sleep(max(0.0, self._began + step.at_s - time.monotonic()))
        begun_s = time.monotonic() - self._began
        is_done = self._carry_out(step)
        ended_s = time.monotonic() - self._began
        if is_done:
            self.done.append(step)
        self.diary.append(f"{begun_s:.3f}..{ended_s:.3f} {step}{'' if is_done else ' (missed)'}")

    def _carry_out(self, step: Step) -> bool:
        match step.trouble:
            case Trouble.KILL_OPERATOR:
                return self._kill_operator()
            case Trouble.REPLACE_OPERATOR:
                self.installation.replace_operator_pod()
                return True
            case Trouble.DRAIN:
                self.installation.drain_node(step.node)
                self.installation.uncordon_node(step.node)
                return True
            case Trouble.PAUSE:
                self.installation.pause_node(step.node)
                try:
                    time.sleep(step.lasts_s)
                finally:
                    self.installation.resume_node(step.node)
                return True
            case _:
                assert step.task is not None
                life = [life for life in self.lives if life.number == step.task][-1]
                return self._trouble_task(step.trouble, life)

    def _trouble_task(self, trouble: Trouble, life: Life) -> bool:
        task = life.task
        match trouble:
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
                return self._try("--namespace", SOAK, "delete", "terraformtask", task.name, "--wait=false")
            case Trouble.RECREATE:
                return self._recreate(life)
            case Trouble.DELETE_POD:
                return self._delete_pod(task)
            case Trouble.FORCE_DELETE_POD:
                return self._delete_pod(task, "--force", "--grace-period=0")
            case Trouble.EVICT:
                return self._evict(task)
            case Trouble.KILL_AGENT:
                return self._kill(task, "terrahalt_agent")
            case Trouble.KILL_POD:
                return self._kill(task, "")
            case Trouble.KILL_TERRAFORM:
                return self._kill(task, "terraform", "tofu")
            case Trouble.KILL_PROVIDER:
                return self._kill(task, "terraform-provider-")
            case Trouble.KILL_OPERATOR | Trouble.REPLACE_OPERATOR | Trouble.DRAIN | Trouble.PAUSE:
                raise AssertionError(f"not of a task: {trouble}")
        assert_never(trouble)

    # ---- troubles

    def _try(self, *arguments: str, stdin: str = "") -> bool:
        """False where there is no such object any more."""
        done = self.installation.kubectl.attempt(*arguments, stdin=stdin)
        if done.returncode:
            text = (done.stderr or done.stdout).strip()
            assert "NotFound" in text, f"kubectl {' '.join(arguments)}: {text}"
        return done.returncode == 0

    def _patch(self, task: RunningTask, patch: str) -> bool:
        return self._try("--namespace", SOAK, "patch", "terraformtask", task.name, "--type", "merge", "-p", patch)

    def _recreate(self, life: Life) -> bool:
        task = life.task
        if not self._try("--namespace", SOAK, "delete", "terraformtask", task.name, "--wait=false"):
            return False
        task.until_gone(ENDED_WITHIN_S)
        counter = self.installation.name(f"round-{self.plan.number}-again")
        (made,) = start(self.installation, self._object(task.name, task.workspace, life.planned, counter))
        self.lives.append(Life(life.number, life.planned, counter, made))
        return True

    def _has_agent(self, task: RunningTask) -> bool:
        return bool(task.pod_name) and task.end is None

    def _delete_pod(self, task: RunningTask, *how: str) -> bool:
        if not self._has_agent(task):
            return False
        return self._try("--namespace", SOAK, "delete", "pod", task.pod_name, "--wait=false", *how)

    def _evict(self, task: RunningTask) -> bool:
        if not self._has_agent(task):
            return False
        named = {"name": task.pod_name, "namespace": SOAK}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": named}
        path = f"/api/v1/namespaces/{SOAK}/pods/{task.pod_name}/eviction"
        return self._try("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))

    def _kill(self, task: RunningTask, *programs: str) -> bool:
        """Processes of its pod whose program or module has such a name; of an empty name: all of them."""
        if not self._has_agent(task):
            return False
        lives = self.installation.nodes.processes(pod_uid=task.pod_uid)
        if "" in programs:
            return self.installation.nodes.kill_at_once(lives) > 0
        found = [p for p in lives if any(_is_called(p["command"], program) for program in programs)]
        return self.installation.nodes.kill_at_once(found) > 0

    def _kill_operator(self) -> bool:
        pod = self.installation.operator_pod()
        done = self.installation.kill_operator()
        statuses = (pod or {}).get("status", {}).get("containerStatuses", [])
        # The kubelet starts it ever later.
        if any(status["restartCount"] > 1 for status in statuses):
            self.installation.replace_operator_pod()
        return done

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
        self._try("--namespace", SOAK, "patch", "lease", lease, "--type=json", "-p", json.dumps(patch))
        self.diary.append(f"{time.monotonic() - self._began:.3f} freed the lock {holder} that {task.name} left")


def _is_gone(task: RunningTask) -> bool:
    """Deleted before it had a phase that ends."""
    return bool(task.history) and task.history[-1].is_deleted


def _is_called(command: list[str], program: str) -> bool:
    if not command:
        return False
    name = command[0].rpartition("/")[2]
    return name.startswith(program) if program.endswith("-") else name == program or program in command[1:]
