"""The invariants of the design, from what is true in the model and never from what a status says.

Told of every write to the API server and of every act of an agent, right when it happens: what is wrong for one
moment between two steps is found too. The numbers are those of the invariants. Called by `api_server`, `pods` and
`simulation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from terrahalt_agent.core.instructions import AgentInstruction, Answer
from terrahalt_operator.adapters.objects import claim as claim_of
from terrahalt_operator.core import names
from terrahalt_operator.core.model import TERMINAL, Claim
from terrahalt_protocol.messages import (
    Ack,
    Cancel,
    CancelReason,
    Command,
    RefusalCode,
    Refused,
    Report,
    Start,
    Step,
)
from tests.simulation.api_server import ApiServer, Json
from tests.simulation.operators import NAMESPACE
from tests.simulation.pods import Pod
from tests.simulation.terraform import Locks, state_of


class Violation(AssertionError):
    """What was broken, and by whom."""


@dataclass
class _Task:
    """What people have done to it, and how it ended first."""

    name: str
    is_copy: bool
    was_cancelled: bool = False
    was_deleted: bool = False
    was_given_up: bool = False
    is_abandoned: bool = False
    is_gone: bool = False
    phase: str = ""
    run_id: str = ""
    runs: list[str] = field(default_factory=list)
    """Those that were begun by some agent."""


@dataclass
class _Run:
    task_uid: str
    pod: Pod
    state: str
    steps: list[Step] = field(default_factory=list)


class Judge:
    def __init__(self) -> None:
        self.tasks: dict[str, _Task] = {}
        self.runs: dict[str, _Run] = {}
        self.pods: dict[str, Pod] = {}
        self.ends: dict[str, Report] = {}
        """Run ID -> how it ended, as its agent has it; of those too that never began."""
        self._cancelled: set[tuple[str, str]] = set()
        """(pod UID, run ID) of each Cancel that an agent has obeyed."""
        self._epochs: dict[str, int] = {}
        """Pod UID -> the highest that it was told of."""
        self._made: dict[str, set[str]] = {}
        """Operator -> the runs that it has made claims for."""
        self._unclaimed: set[str] = set()
        """Runs whose claim a person has deleted."""
        self._server: ApiServer
        self._locks: Locks

    def watch_over(self, server: ApiServer, locks: Locks) -> None:
        self._server, self._locks = server, locks

    # ---- writes to the API server

    def written(self, by: str, plural: str, old: Json | None, new: Json | None) -> None:
        if plural == "terraformtasks":
            self._task_written(old, new)
        elif plural == "pods" and old is not None and by.startswith("operator"):
            self._pod_written(by, old, new)
        elif plural == "leases" and old is not None and new is None:
            self._claim_released(by, claim_of(old))
        elif plural == "leases" and old is None and new is not None:
            self._claim_made(by, claim_of(new))

    def _claim_made(self, by: str, claim: Claim) -> None:
        leases = self._server.all("leases", NAMESPACE, names.CLAIM_LABEL)
        same_pod = [c.run_id for c in map(claim_of, leases) if c.pod_uid == claim.pod_uid and c.run_id != claim.run_id]
        known = self._made.setdefault(by, set())
        if known & set(same_pod):
            raise Violation(f"2: {by} gives pod {claim.pod_name} to {claim.run_id}, and has given it to {same_pod[0]}")
        known.add(claim.run_id)

    def _claim_released(self, by: str, claim: Claim) -> None:
        run, task = self.runs.get(claim.run_id), self.tasks[claim.task_uid]
        if not by.startswith("operator"):
            self._unclaimed.add(claim.run_id)
            return
        if run is None or task.is_abandoned:
            return
        if run.pod.is_run_alive(claim.run_id):
            raise Violation(f"2: {by} released the claim of {claim.run_id}, which is alive")
        if not task.is_gone and task.phase not in TERMINAL:
            raise Violation(f"7: {by} released the claim of {claim.run_id} before its task's end was on record")

    def _task_written(self, old: Json | None, new: Json | None) -> None:
        obj = new or old
        assert obj is not None
        meta, spec = obj["metadata"], obj["spec"]
        uid = meta["uid"]
        if (task := self.tasks.get(uid)) is None:
            stamp = (meta.get("annotations") or {}).get(names.UID_ANNOTATION)
            task = self.tasks[uid] = _Task(meta["name"], is_copy=stamp is not None)
        task.was_cancelled |= bool(spec.get("cancel"))
        task.was_deleted |= "deletionTimestamp" in meta
        task.was_given_up |= spec.get("cancelMode") == "Abandon"
        task.is_gone = new is None
        if new is None:
            return
        status = new.get("status") or {}
        phase, run_id = status.get("phase", ""), status.get("runID", "")
        if task.phase in TERMINAL and phase != task.phase:
            raise Violation(f"3: the end of {task.name} changed from {task.phase} to {phase or 'nothing'}")
        if task.run_id not in ("", run_id):
            raise Violation(f"2: {task.name} was given run {task.run_id}, and then {run_id or 'none'}")
        if phase in TERMINAL and task.phase not in TERMINAL:
            self._check_end(task, phase, status["result"])
        task.phase, task.run_id = phase, run_id

    def _check_end(self, task: _Task, phase: str, result: Json) -> None:
        reason = result["reason"]
        if reason == "Abandoned":
            if not task.was_given_up or phase != "Failed":
                raise Violation(f"1: {task.name} ended as {phase}/Abandoned, which nobody asked for")
            task.is_abandoned = True
            return
        for run_id in task.runs:
            run, end = self.runs[run_id], self.ends.get(run_id)
            if run.pod.is_run_alive(run_id):
                raise Violation(f"1: {task.name} ended as {phase}/{reason}, and its {run_id} is alive")
            if end is None and reason != "AgentLost":
                raise Violation(f"4: {task.name} ended as {phase}/{reason}, and its agent died before it could tell")
            told = end.result if end is not None else None
            if told is not None and (phase, reason) != (told.outcome, told.reason):
                raise Violation(f"4: {task.name} ended as {phase}/{reason}, in truth {told.outcome}/{told.reason}")
            if result["lock"] == "Released" and self._locks.held.get(run.state) == run_id:
                raise Violation(f"4: the status says that the lock of {run.state} is released, {run_id} holds it")
        if not task.runs and phase == "Succeeded":
            raise Violation(f"4: {task.name} succeeded, and nothing of it ever ran")
        if phase == "Cancelled" and not task.runs and not (task.was_cancelled or task.was_deleted):
            raise Violation(f"7: {task.name} ended as Cancelled, and nobody has cancelled it")

    def _pod_written(self, by: str, old: Json, new: Json | None) -> None:
        pod = self.pods.get(old["metadata"]["uid"])
        runs = [r for r in pod.live_runs if not self._is_abandoned(self.runs[r].task_uid)] if pod is not None else []
        if not runs:
            return
        if "deletionTimestamp" not in old["metadata"] and (new is None or "deletionTimestamp" in new["metadata"]):
            raise Violation(f"7: {by} deleted pod {old['metadata']['name']}, in which {runs[0]} is alive")
        had = names.AGENT_FINALIZER in old["metadata"].get("finalizers", ())
        if had and (new is None or names.AGENT_FINALIZER not in new["metadata"].get("finalizers", ())):
            raise Violation(f"1: {by} let pod {old['metadata']['name']} go, in which {runs[0]} is alive")

    # ---- what agents do

    def run_begins(self, pod: Pod, start: Start) -> None:
        run_id, task = start.run_id, self.tasks[start.task.uid]
        if run_id in self.runs:
            raise Violation(f"6: {run_id} of {task.name} was begun twice")
        self.runs[run_id] = _Run(start.task.uid, pod, state_of(start))
        task.runs.append(run_id)
        if task.is_abandoned:
            return
        if len(task.runs) > 1:
            raise Violation(f"6: {task.name} runs a second time, as {run_id} after {task.runs[0]}")
        if task.is_copy:
            raise Violation(f"3: {task.name} is a restored copy, and runs as {run_id}")
        if task.phase in TERMINAL:
            raise Violation(f"1: {task.name} has ended as {task.phase}, and begins to run as {run_id}")
        if (pod.uid, run_id) in self._cancelled:
            raise Violation(f"5: {run_id} of {task.name} begins, and its cancel came before it")
        if not self._is_claimed(run_id, pod):
            raise Violation(f"2: {run_id} of {task.name} begins without a claim of its workspace for pod {pod.name}")

    def terraform_starts(self, pod: Pod, start: Start, step: Step) -> None:
        run = self.runs[start.run_id]
        if step in run.steps and step is not Step.INIT:
            raise Violation(f"6: {start.run_id} runs {step} twice")
        run.steps.append(step)
        if (pod.uid, start.run_id) in self._cancelled:
            raise Violation(f"5: {start.run_id} starts {step}, and its agent has heard of its cancel")
        if self._is_abandoned(run.task_uid):
            return
        for run_id, other in self.runs.items():
            is_other = run_id != start.run_id and other.state == run.state and not self._is_abandoned(other.task_uid)
            if is_other and other.pod.is_run_alive(run_id):
                raise Violation(f"2: {start.run_id} and {run_id} are alive on {run.state}")
        if not self._is_claimed(start.run_id, pod):
            raise Violation(f"2: {start.run_id} starts {step} without a claim of {run.state}")

    def command_arrives(self, pod: Pod, command: Command) -> None:
        if command.epoch < self._epochs.get(pod.uid, 0) or not isinstance(command, Ack):
            return
        run = self.runs.get(command.run_id)
        task = self.tasks.get(run.task_uid) if run is not None else None
        if run is not None and task is not None and not task.is_gone and task.phase not in TERMINAL:
            raise Violation(f"9: the end of {command.run_id} was acknowledged before that of {task.name} was on record")

    def command_was_obeyed(self, pod: Pod, command: Command, answers: Sequence[AgentInstruction]) -> None:
        highest = self._epochs.get(pod.uid, 0)
        is_refused = any(
            isinstance(a, Answer) and isinstance(a.message, Refused) and a.message.code is RefusalCode.STALE_EPOCH
            for a in answers
        )
        if command.epoch < highest and pod.is_alive and not is_refused:
            raise Violation(f"8: pod {pod.name} obeyed epoch {command.epoch}, and had heard of epoch {highest}")
        self._epochs[pod.uid] = max(highest, command.epoch)
        if isinstance(command, Cancel) and pod.is_alive and not is_refused:
            self._cancelled.add((pod.uid, command.run_id))

    def run_ended(self, pod: Pod, report: Report) -> None:
        run_id = report.run_id
        assert report.result is not None
        known = self.ends.setdefault(run_id, report)
        if known.result != report.result:
            raise Violation(f"4: pod {pod.name} tells two different ends of {run_id}")
        run = self.runs.get(run_id)
        if run is None or report.cancel is None:
            return
        task = self.tasks[run.task_uid]
        reason = report.cancel.reason
        is_asked_for = {
            CancelReason.USER: task.was_cancelled,
            CancelReason.DELETION: task.was_deleted or task.is_gone,
            CancelReason.POD_TERMINATION: pod.is_terminating or "deletionTimestamp" in self._metadata(pod),
            CancelReason.TIMEOUT: True,
        }
        if not is_asked_for[reason]:
            raise Violation(f"7: {run_id} of {task.name} was ended ({reason}), and nobody wanted that")

    def end_is_told(self, pod: Pod, run_id: str) -> None:
        if any(t.has_processes and t.start.run_id == run_id for t in pod.terraforms):
            raise Violation(f"1: pod {pod.name} tells the end of {run_id}, and processes of it are alive")

    # ---- what is true

    def _is_abandoned(self, task_uid: str) -> bool:
        return self.tasks[task_uid].is_abandoned

    def _is_claimed(self, run_id: str, pod: Pod) -> bool:
        leases = self._server.all("leases", NAMESPACE, names.CLAIM_LABEL)
        is_held = any((c.run_id, c.pod_uid) == (run_id, pod.uid) for c in map(claim_of, leases))
        return is_held or run_id in self._unclaimed

    def _metadata(self, pod: Pod) -> Json:
        obj = self._server.find("pods", pod.namespace, pod.name)
        return obj["metadata"] if obj is not None else {"deletionTimestamp": ""}
