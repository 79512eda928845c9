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
from terrahalt_operator.core.status import seconds
from terrahalt_protocol.messages import (
    SUPERSEDED,
    Ack,
    ApprovedPlan,
    Cancel,
    CancelMode,
    CancelReason,
    Command,
    Leave,
    RefreshCredentials,
    RefusalCode,
    Refused,
    Report,
    Start,
    Step,
)
from tests.simulation.api_server import ENDED_PHASES, ApiServer, Json
from tests.simulation.operators import NAMESPACE
from tests.simulation.pods import Pod, digest_of
from tests.simulation.terraform import Locks, state_of


class Violation(AssertionError):
    """What was broken, and by whom."""


@dataclass
class _Task:
    """What people have done to it, and how it ended first."""

    name: str
    is_copy: bool
    line: tuple[str, str]
    """Namespace and workspace: those for which one task may take another's place."""
    created_at: float
    needs_approval: bool
    supersede: str
    queue_timeout_s: float | None
    approval_timeout_s: float
    is_too_long: bool
    """Its end does not fit into the grace of a pod."""
    ttl_s: float | None = None
    was_cancelled: bool = False
    was_deleted: bool = False
    was_given_up: bool = False
    asks_force: bool = False
    is_abandoned: bool = False
    is_gone: bool = False
    approved: str = ""
    """The digest that a person has set."""
    plan_run: str = ""
    """The run whose plan is on record."""
    asked_to_make_way: bool = False
    """That is on record."""
    finished_at: float = 0.0
    phase: str = ""
    run_id: str = ""
    runs: list[str] = field(default_factory=list)
    """Those that were begun by some agent."""


@dataclass
class _Run:
    task_uid: str
    pod: Pod
    state: str
    applies: str = ""
    """The digest of the plan that it was given; empty: it makes its own."""
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
        self.forced: set[tuple[str, str]] = set()
        """The same of those that ask for Force."""
        self.released: list[Claim] = []
        """Claims that operators have released, since somebody has emptied it."""
        self._epochs: dict[str, int] = {}
        """Pod UID -> the highest that it was told of."""
        self._made: dict[str, set[str]] = {}
        """Operator -> the runs that it has made claims for."""
        self._refused: set[str] = set()
        """Runs that an agent would not take, with good cause."""
        self._unclaimed: set[str] = set()
        """Runs whose claim a person has deleted."""
        self.ahead_s: dict[str, float] = {}
        """Operator -> how far its clock has been ahead of the API server's: it measures waits by its own."""
        self._most_agents: dict[tuple[str, str], int] = {}
        """Pool, by its namespace and name -> the most that its `maxAgents` has ever been."""
        self._made_pods: dict[str, set[str]] = {}
        """Operator -> UIDs of the pods that it has made."""
        self._knows_of: dict[str, set[str]] = {}
        """Operator -> those that it has proven to be an operator's, and has heard so."""
        self._server: ApiServer
        self._locks: Locks

    def watch_over(self, server: ApiServer, locks: Locks) -> None:
        self._server, self._locks = server, locks

    # ---- writes to the API server

    def written(self, by: str, plural: str, old: Json | None, new: Json | None) -> None:
        if plural == "terraformtasks":
            self._task_written(by, old, new)
        elif plural == "agentpools" and new is not None:
            self._pool_written(new)
        elif plural == "pods" and old is None and new is not None:
            self._pod_made(by, new)
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
        self.released.append(claim)
        if run is None or task.is_abandoned:
            return
        if run.pod.is_run_alive(claim.run_id):
            raise Violation(f"2: {by} released the claim of {claim.run_id}, which is alive")
        if not task.is_gone and task.phase not in TERMINAL and task.plan_run != claim.run_id:
            raise Violation(f"7: {by} released the claim of {claim.run_id} before its task's end was on record")

    def _task_written(self, by: str, old: Json | None, new: Json | None) -> None:
        obj = new or old
        assert obj is not None
        meta, spec = obj["metadata"], obj["spec"]
        uid = meta["uid"]
        if (task := self.tasks.get(uid)) is None:
            stamp = (meta.get("annotations") or {}).get(names.UID_ANNOTATION)
            task = self.tasks[uid] = _Task(
                meta["name"],
                is_copy=stamp is not None,
                line=(meta["namespace"], spec["workspace"]),
                created_at=seconds(meta["creationTimestamp"]),
                needs_approval=spec.get("approval") == "Manual" and spec["action"] != "Plan",
                supersede=spec.get("supersede", "None"),
                queue_timeout_s=spec.get("queueTimeoutSeconds"),
                approval_timeout_s=spec.get("approvalTimeoutSeconds", 86_400),
                is_too_long=spec.get("cancelGraceSeconds", 300) > 300,
                ttl_s=spec.get("ttlSecondsAfterFinished"),
            )
        if by.startswith("operator") and "deletionTimestamp" in meta and not task.was_deleted:
            self._check_deletion(by, task)
        task.was_cancelled |= bool(spec.get("cancel"))
        task.was_deleted |= "deletionTimestamp" in meta
        task.was_given_up |= spec.get("cancelMode") == "Abandon"
        task.asks_force |= bool(spec.get("cancel")) and spec.get("cancelMode", "Graceful") != "Graceful"
        task.approved = spec.get("approvedPlanDigest", "")
        task.is_gone = new is None
        if new is None:
            return
        status = new.get("status") or {}
        phase, run_id = status.get("phase", ""), status.get("runID", "")
        if task.phase in TERMINAL and phase != task.phase:
            raise Violation(f"3: the end of {task.name} changed from {task.phase} to {phase or 'nothing'}")
        if (plan := status.get("plan") or {}).get("digest") and not task.plan_run:
            self._check_plan(task, phase, run_id, plan)
            task.run_id, task.plan_run = "", plan["runID"]
        task.asked_to_make_way |= bool((status.get("cancel") or {}).get("supersededBy"))
        if task.run_id not in ("", run_id):
            raise Violation(f"2: {task.name} was given run {task.run_id}, and then {run_id or 'none'}")
        if phase in TERMINAL and task.phase not in TERMINAL:
            self._check_end(by, task, phase, status)
            task.finished_at = seconds(status["finishedAt"])
        task.phase, task.run_id = phase, run_id

    def _check_end(self, by: str, task: _Task, phase: str, status: Json) -> None:
        result = status["result"]
        reason = result["reason"]
        if reason == "Abandoned":
            if not task.was_given_up or phase != "Failed":
                raise Violation(f"1: {task.name} ended as {phase}/Abandoned, which nobody asked for")
            task.is_abandoned = True
            return
        applying = [run_id for run_id in task.runs if self.runs[run_id].applies or not self._has_planned(run_id)]
        for run_id in applying:
            run, end = self.runs[run_id], self.ends.get(run_id)
            if run.pod.is_run_alive(run_id):
                raise Violation(f"1: {task.name} ended as {phase}/{reason}, and its {run_id} is alive")
            if end is None and (reason != "AgentLost" or run.pod.is_alive):
                raise Violation(f"4: {task.name} ended as {phase}/{reason}, and its agent died before it could tell")
            told = end.result if end is not None else None
            if told is not None and (phase, reason) != (told.outcome, told.reason):
                raise Violation(f"4: {task.name} ended as {phase}/{reason}, in truth {told.outcome}/{told.reason}")
            if result["lock"] == "Released" and self._locks.held.get(run.state) == run_id:
                raise Violation(f"4: the status says that the lock of {run.state} is released, {run_id} holds it")
        if applying:
            return
        # It had no run, or one that ended with a plan; any other has said itself how it ended.
        if phase == "Succeeded":
            raise Violation(f"4: {task.name} succeeded, and nothing of it was applied")
        if not self._has_cause(by, task, phase, reason, status):
            raise Violation(f"7: {task.name} ended as {phase}/{reason}, and that has no cause")

    def _has_cause(self, by: str, task: _Task, phase: str, reason: str, status: Json) -> bool:
        """Of an end before anything was applied: each reason that a status may give has a truth of its own."""
        run_id, now = status.get("runID", ""), self._now_of(by)
        end = self.ends.get(run_id)
        if end is not None and end.result is not None and end.result.kept_plan is None:  # its cancel came first
            return (phase, reason) == (end.result.outcome, end.result.reason)
        match phase, reason:
            case "Cancelled", "CancelledByUser":
                return task.was_cancelled
            case "Cancelled", "CancelledByDeletion":
                return task.was_deleted
            case "Cancelled", "Superseded":
                return self._may_be_superseded(task, has_begun=bool(task.runs))
            case "Failed", "RestoredCopy":
                return task.is_copy
            case "Failed", "InvalidBudget":
                return task.is_too_long
            case "Failed", "QueueTimedOut":
                timeout_s = task.queue_timeout_s
                return not task.runs and timeout_s is not None and now - task.created_at >= timeout_s
            case "Failed", "ApprovalTimedOut":
                is_approved = task.approved == digest_of(task.plan_run)
                since = seconds(status["plan"]["readyAt"]) if task.plan_run else now
                return not is_approved and now - since >= task.approval_timeout_s
            case "Failed", "PlanExpired":
                return task.approved == digest_of(task.plan_run) and self._has_other_images(task)
            case "Failed", "AgentRefused":
                return run_id in self._refused
            case "Failed", "AgentLost":
                pod = self.pods.get((status.get("agent") or {}).get("podUID", ""))
                return pod is not None and not pod.is_alive
            case _:
                return False

    def _has_other_images(self, task: _Task) -> bool:
        """Agents that are not what its plan was made with."""
        made_with = self.runs[task.plan_run].pod.image_id
        return any(pod.namespace == task.line[0] and pod.image_id != made_with for pod in self.pods.values())

    def _now_of(self, by: str) -> float:
        return self._server.now() + self.ahead_s.get(by, 0.0)

    def _check_plan(self, task: _Task, phase: str, run_id: str, plan: Json) -> None:
        """It is on record: its run has ended, and its agent has kept that very plan."""
        made_by = plan["runID"]
        if phase != "AwaitingApproval" or run_id:
            raise Violation(f"approval: the plan of {task.name} is on record in phase {phase}, with run {run_id}")
        if made_by not in self.runs or self.runs[made_by].pod.is_run_alive(made_by):
            raise Violation(f"1: {task.name} waits for approval, and its {made_by} is alive, or never was")
        if not self._has_planned(made_by) or plan["digest"] != digest_of(made_by):
            raise Violation(f"approval: the plan of {task.name} is no plan that {made_by} has kept")

    def _has_planned(self, run_id: str) -> bool:
        end = self.ends.get(run_id)
        return end is not None and end.result is not None and end.result.kept_plan is not None

    def _may_be_superseded(self, task: _Task, *, has_begun: bool) -> bool:
        modes = ("Planning",) if has_begun else ("Planning", "Queued")
        return any(
            other.line == task.line and other.created_at > task.created_at and other.supersede in modes
            for other in self.tasks.values()
        )

    def _check_deletion(self, by: str, task: _Task) -> None:
        since_s = self._now_of(by) - task.finished_at
        if task.phase not in TERMINAL or task.ttl_s is None or since_s < task.ttl_s:
            raise Violation(f"7: {by} deleted {task.name}, in phase {task.phase or 'new'}, after {since_s} s")

    # ---- agents, and how many

    def answered(self, by: str, pod: Json) -> None:
        """An operator has heard of a write of its own to this pod."""
        if names.PROOF_ANNOTATION in pod["metadata"].get("annotations", {}):
            self._knows_of.setdefault(by, set()).add(pod["metadata"]["uid"])

    def _pool_written(self, pool: Json) -> None:
        at = pool["metadata"]["namespace"], pool["metadata"]["name"]
        self._most_agents[at] = max(pool["spec"]["maxAgents"], self._most_agents.get(at, 0))

    def _pod_made(self, by: str, new: Json) -> None:
        """An operator may not know of the latest number, of pods that others have made, or of one that it has made
        itself, if the answer was lost."""
        at = new["metadata"]["namespace"], new["metadata"]["labels"][names.POOL_LABEL]
        made, known = self._made_pods.setdefault(by, set()), self._knows_of.get(by, set()).intersection
        alive = {obj["metadata"]["uid"] for obj in self.agents_of(*at) if not is_over(obj)}
        if len(alive & made & known(alive)) >= self._most_agents[at]:
            raise Violation(f"pool: {by} makes one more agent for {at}, and knows of {len(known(alive & made))}")
        made.add(new["metadata"]["uid"])

    def agents_of(self, namespace: str, pool: str) -> list[Json]:
        return self._server.all("pods", namespace, f"{names.POOL_LABEL}={pool}")

    def _pod_written(self, by: str, old: Json, new: Json | None) -> None:
        if (pod := self.pods.get(old["metadata"]["uid"])) is None:
            return
        runs = [r for r in pod.live_runs if not self._is_abandoned(self.runs[r].task_uid)]
        given = self._given_to(pod.uid)
        if "deletionTimestamp" not in old["metadata"] and (new is None or "deletionTimestamp" in new["metadata"]):
            if runs:
                raise Violation(f"7: {by} deleted pod {pod.name}, in which {runs[0]} is alive")
            if given and pod.is_alive:
                raise Violation(f"7: {by} deleted pod {pod.name}, which {given[0]} was given")
        had = names.AGENT_FINALIZER in old["metadata"].get("finalizers", ())
        if had and (new is None or names.AGENT_FINALIZER not in new["metadata"].get("finalizers", ())):
            if runs:
                raise Violation(f"1: {by} let pod {pod.name} go, in which {runs[0]} is alive")
            if given:
                raise Violation(f"4: {by} let pod {pod.name} go, and the end of {given[0]} is not on record")

    def _given_to(self, pod_uid: str) -> list[str]:
        """Runs that were given to this pod, on record or not, and whose end is on record nowhere but there."""
        leases = self._server.all("leases", NAMESPACE, names.CLAIM_LABEL)
        claims = [(c.run_id, self.tasks[c.task_uid]) for c in map(claim_of, leases) if c.pod_uid == pod_uid]
        return [
            run_id
            for run_id, task in claims
            if (run_id in self.runs or run_id == task.run_id)
            and run_id != task.plan_run
            and task.phase not in TERMINAL
            and not task.is_abandoned
        ]

    # ---- what agents do

    def run_begins(self, pod: Pod, start: Start) -> None:
        run_id, task = start.run_id, self.tasks[start.task.uid]
        if run_id in self.runs:
            raise Violation(f"6: {run_id} of {task.name} was begun twice")
        plan = start.approval.plan if start.approval is not None else None
        self.runs[run_id] = _Run(start.task.uid, pod, state_of(start), plan.digest if plan is not None else "")
        task.runs.append(run_id)
        if task.is_abandoned:
            return
        if plan is not None:
            self._check_approval(task, run_id, plan)
        elif task.needs_approval and start.approval is None:
            raise Violation(f"approval: {run_id} of {task.name} would apply at once")
        if len(task.runs) > (1 if plan is None else 2):
            raise Violation(f"6: {task.name} runs a second time, as {run_id} after {task.runs[0]}")
        if task.is_copy:
            raise Violation(f"3: {task.name} is a restored copy, and runs as {run_id}")
        if task.phase in TERMINAL:
            raise Violation(f"1: {task.name} has ended as {task.phase}, and begins to run as {run_id}")
        if (pod.uid, run_id) in self._cancelled:
            raise Violation(f"5: {run_id} of {task.name} begins, and its cancel came before it")
        if not self._is_claimed(run_id, pod):
            raise Violation(f"2: {run_id} of {task.name} begins without a claim of its workspace for pod {pod.name}")

    def _check_approval(self, task: _Task, run_id: str, plan: ApprovedPlan) -> None:
        if plan.run_id != task.plan_run or plan.digest != digest_of(task.plan_run):
            raise Violation(f"approval: {run_id} of {task.name} is to apply what {plan.run_id} has planned")
        if task.approved != plan.digest and not task.is_gone:
            raise Violation(f"approval: {run_id} of {task.name} is to apply a plan that nobody has approved")

    def terraform_starts(self, pod: Pod, start: Start, step: Step) -> None:
        run = self.runs[start.run_id]
        if step in run.steps and step is not Step.INIT:
            raise Violation(f"6: {start.run_id} runs {step} twice")
        run.steps.append(step)
        is_planned_here = not run.applies
        if step is not Step.INIT and self.tasks[run.task_uid].needs_approval and is_planned_here != (step is Step.PLAN):
            raise Violation(f"approval: {start.run_id} starts {step}")
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
        if isinstance(command, Leave) and (pod.live_runs or "deletionTimestamp" not in self._metadata(pod)):
            raise Violation(f"1: {pod.name} is told to leave, and has {pod.live_runs or 'not been deleted'}")
        if isinstance(command, RefreshCredentials | Leave):
            return
        run = self.runs.get(command.run_id)
        task = self.tasks.get(run.task_uid) if run is not None else None
        if isinstance(command, Cancel) and command.superseded_by and task is not None and not task.asked_to_make_way:
            raise Violation(f"7: {command.run_id} is to make way, and that is not on record")
        if command.epoch < self._epochs.get(pod.uid, 0) or not isinstance(command, Ack):
            return
        if task is None or task.is_gone or task.phase in TERMINAL:
            return
        if task.plan_run != command.run_id:
            raise Violation(f"9: the end of {command.run_id} was acknowledged before that of {task.name} was on record")

    def command_was_obeyed(self, pod: Pod, command: Command, answers: Sequence[AgentInstruction]) -> None:
        highest = self._epochs.get(pod.uid, 0)
        told = [a.message for a in answers if isinstance(a, Answer)]
        refusals = [message for message in told if isinstance(message, Refused)]
        is_refused = any(refused.code is RefusalCode.STALE_EPOCH for refused in refusals)
        if refusals and not is_refused:
            self._note_refusal(pod, refusals[0])
        if command.epoch < highest and pod.is_alive and not is_refused:
            raise Violation(f"8: pod {pod.name} obeyed epoch {command.epoch}, and had heard of epoch {highest}")
        self._epochs[pod.uid] = max(highest, command.epoch)
        if isinstance(command, Cancel) and pod.is_alive and not is_refused:
            run = self.runs.get(command.run_id)
            if not command.superseded_by or run is None or Step.APPLY not in run.steps:
                self._cancelled.add((pod.uid, command.run_id))
            if command.mode is CancelMode.FORCE:
                self.forced.add((pod.uid, command.run_id))

    def _note_refusal(self, pod: Pod, refused: Refused) -> None:
        is_in_its_way = pod.agent.is_terminating or any(run_id != refused.run_id for run_id in pod.starts)
        if refused.code not in (RefusalCode.BUSY, RefusalCode.USED) or not is_in_its_way:
            raise Violation(f"7: pod {pod.name} refused {refused.run_id}, and has no cause: {refused.message}")
        self._refused.add(refused.run_id)

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
        if report.cancel.cause == SUPERSEDED:
            if not self._may_be_superseded(task, has_begun=True):
                raise Violation(f"7: {run_id} of {task.name} made way, and there is nobody for whom it should")
            if Step.APPLY in run.steps:
                raise Violation(f"7: the apply of {task.name} was ended for a newer task")
            return
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

    def object_of(self, pod: Pod) -> Json | None:
        obj = self._server.find("pods", pod.namespace, pod.name)
        return obj if obj is not None and obj["metadata"]["uid"] == pod.uid else None

    def _metadata(self, pod: Pod) -> Json:
        obj = self.object_of(pod)
        return obj["metadata"] if obj is not None else {"deletionTimestamp": ""}


def is_over(pod: Json) -> bool:
    """As far as its status says: its container has ended, or there will be none."""
    status = pod.get("status") or {}
    if containers := status.get("containerStatuses"):
        return "terminated" in containers[0]["state"]
    return status.get("phase") in ENDED_PHASES
