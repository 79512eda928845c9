"""What the tests say in one word: tasks, claims, agents, sessions, reports, pools and snapshots.

Each builder gives a plain, working thing; keywords change what a test is about. The defaults fit
together: `a_claim()` is the claim of `a_task()` on `an_agent()`, and `a_session()` is that agent's.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from terrahalt_operator.adapters.metrics import Metrics, Sights
from terrahalt_operator.core import model, status
from terrahalt_operator.core.identity import claim_name
from terrahalt_operator.core.model import (
    Agent,
    AgentStatus,
    ApprovalMode,
    Claim,
    DrainPolicy,
    Ended,
    Pool,
    ProvidersSpec,
    Queueing,
    ReceivedReport,
    Session,
    Snapshot,
    SourceSpec,
    StateLock,
    Task,
    TaskSpec,
    TaskStatus,
)
from terrahalt_operator.core.pool_snapshot import AgentView, PoolSnapshot
from terrahalt_protocol.messages import (
    Ack,
    Action,
    Cancel,
    CancelAges,
    CancelMode,
    CancelReason,
    CancelReport,
    Hello,
    KeptPlan,
    Lock,
    LockCondition,
    Outcome,
    PlanSummary,
    RefusalCode,
    Refused,
    Report,
    Result,
    Rung,
    Source,
    Start,
    StateCondition,
    Step,
    TaskRef,
)

NOW = 1_750_000_000.0
RUN, OTHER_RUN = "01RUN", "01OTHER"
UID, POD_UID, CONTAINER, FINGERPRINT = "task-uid", "pod-uid", "containerd://c0ffee", "sha256:fee1"
IMAGE, ARCHITECTURE = "sha256:1mage", "x86_64"
KEY = "ab" * 32
EPOCH = 7


def at(offset_s: float) -> str:
    """A time of the tests' clock, as the status spells it."""
    return status.timestamp(NOW + offset_s)


# ---- tasks


DIGEST, PLAN_RUN = "sha256:" + "0" * 64, "01PLAN"
APPROVE = f'{{"spec":{{"approvedPlanDigest":"{DIGEST}"}}}}'


def a_kept_plan(**changes: Any) -> model.PlanStatus:
    """Made an hour ago by an agent as `an_agent()` is."""
    plan = model.PlanStatus(
        add=3,
        change=1,
        destroy=0,
        digest=DIGEST,
        ready_at=at(-3600),
        run_id=PLAN_RUN,
        image=IMAGE,
        architecture=ARCHITECTURE,
    )
    return msgspec.structs.replace(plan, **changes)


def a_planned_task(**changes: Any) -> Task:
    """Its plan is kept; with `approved_plan_digest=DIGEST` it is approved."""
    kept = changes.pop("kept", a_kept_plan())
    status_ = TaskStatus(
        phase=changes.pop("phase", model.AWAITING_APPROVAL), plan=kept, started_at=at(-3700), observed_generation=1
    )
    return a_task(**{"approval": ApprovalMode.MANUAL, "status": status_, **changes})


def a_spec(**changes: Any) -> TaskSpec:
    spec = TaskSpec(action=Action.APPLY, workspace="network", source=SourceSpec(inline={"main.tf": ""}))
    return msgspec.structs.replace(spec, **changes)


def a_task(**changes: Any) -> Task:
    """Stamped and new; `cancel`, `workspace` and the other fields of the spec may be given directly."""
    of_spec = {name: changes.pop(name) for name in list(changes) if name in TaskSpec.__struct_fields__}
    of_status = {name: changes.pop(name) for name in list(changes) if name in ("phase", "run_id", "conditions")}
    uid = changes.get("uid", UID)
    task = Task(
        namespace="team-a",
        name="network-1",
        uid=uid,
        generation=1,
        resource_version="10",
        created_at=NOW - 60,
        is_deleting=False,
        has_finalizer=True,
        stamp=uid,
        arrived=10,
        spec=a_spec(**of_spec),
        status=TaskStatus(**of_status),
    )
    return replace(task, **changes)


def a_status(phase: str, **changes: Any) -> TaskStatus:
    """Of a task whose run was given to `an_agent()`."""
    given = TaskStatus(
        phase=phase,
        observed_generation=1,
        run_id=RUN,
        agent=AgentStatus(pod_name="default-agent-1", pod_uid=POD_UID, container_id=CONTAINER),
    )
    return msgspec.structs.replace(given, **changes)


def a_given_task(phase: str = model.ASSIGNED, **changes: Any) -> Task:
    """Its run is on record."""
    return a_task(status=a_status(phase), **changes)


def a_terminal_status(phase: str = model.SUCCEEDED, reason: str = "Succeeded", **changes: Any) -> TaskStatus:
    result = model.ResultStatus(reason=reason, state="Complete", lock="Released", exit_code=0)
    return a_status(phase, **{"result": result, "finished_at": at(-1), "message": "done", **changes})


# ---- claims and agents


def a_claim(task: Task | None = None, **changes: Any) -> Claim:
    task = task or a_task()
    claim = Claim(
        name=claim_name(task.namespace, task.spec.workspace, task.spec.backend),
        resource_version="20",
        run_id=RUN,
        task_namespace=task.namespace,
        task_name=task.name,
        task_uid=task.uid,
        pod_name="default-agent-1",
        pod_uid=POD_UID,
        container_id=CONTAINER,
        fingerprint=FINGERPRINT,
    )
    return replace(claim, **changes)


def an_agent(**changes: Any) -> Agent:
    agent = Agent(
        namespace="team-a",
        name="default-agent-1",
        uid=POD_UID,
        pool="default",
        engine="Terraform",
        resource_version="15",
        template_hash="new",
        proof="",
        created_at=NOW - 30,
        termination_grace_s=403,
        is_deleting=False,
        deleted_at=None,
        killed_at=None,
        has_finalizer=True,
        ip="10.0.0.1",
        phase="Running",
        container_id=CONTAINER,
        image=IMAGE,
        is_running=True,
        ended=None,
        waiting_reason="",
        unstarted_since=None,
        task_label="",
        run_label="",
        last_task_label="",
    )
    return replace(agent, **changes)


def an_end(**changes: Any) -> Ended:
    end = Ended(container_id=CONTAINER, exit_code=137, reason="OOMKilled", message="", finished_at=NOW - 1)
    return replace(end, **changes)


running_pod = an_agent(run_label=RUN)
ended_pod = an_agent(phase="Failed", is_running=False, ended=an_end())
collected_pod = an_agent(phase="Failed", is_deleting=True)
"""What PodGC leaves of a pod whose Node is gone: Failed, the container's status still `running`."""
pod_of_another_container = an_agent(
    phase="Failed", container_id="containerd://2nd", ended=an_end(container_id="containerd://2nd")
)
lost = None
"""No such pod in the API."""


def a_session(**changes: Any) -> Session:
    """Connected, fresh, and it holds nothing."""
    hello = Hello(
        protocol_version=1,
        agent_version="0.1.0",
        namespace="team-a",
        pod_name="default-agent-1",
        pod_uid=POD_UID,
        boot_id="boot",
        architecture=ARCHITECTURE,
    )
    session = Session(
        hello=hello,
        fingerprint=FINGERPRINT,
        runs=frozenset(),
        is_used=False,
        sent_start="",
        sent_cancel=None,
        refused=None,
        mismatch=None,
        since=NOW - 20,
        refreshed="",
        sent_refresh="",
        sent_leave=False,
        refresh_problem="",
    )
    return replace(session, **changes)


def sparing(**changes: Any) -> Session:
    """A session of an agent that holds the run, and spares an apply where a newer task takes its place."""
    session = holding(**changes)
    return replace(session, hello=msgspec.structs.replace(session.hello, spares_apply=True))


def holding(*runs: str, **changes: Any) -> Session:
    """A session of an agent that holds these runs."""
    return a_session(runs=frozenset(runs or (RUN,)), is_used=True, **changes)


def a_refusal(code: RefusalCode = RefusalCode.USED, run_id: str = RUN) -> Refused:
    return Refused(code=code, message="this agent has had its run", run_id=run_id, highest_epoch=EPOCH)


# ---- reports


def a_result(outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> Result:
    reason = {"Succeeded": "Succeeded", "Failed": "ApplyFailed", "Cancelled": "CancelledByUser"}[outcome]
    plain = Result(
        outcome=outcome,
        reason=reason,
        message="apply complete",
        exit_code=0,
        state=StateCondition.COMPLETE,
        lock=Lock(condition=LockCondition.RELEASED),
        log_kept=True,
    )
    return msgspec.structs.replace(plain, **changes)


def a_cancel_report(rung: Rung = Rung.INTERRUPT, *, cause: str = "", **ages: float | None) -> CancelReport:
    reason = CancelReason(str(ages.pop("reason", CancelReason.USER)))
    return CancelReport(reason=reason, mode=CancelMode.GRACEFUL, rung=rung, ages=CancelAges(**ages), cause=cause)


def a_report(step: Step = Step.APPLY, *, received_at: float = NOW, **changes: Any) -> ReceivedReport:
    plain = Report(run_id=RUN, task_uid=UID, boot_id="boot", sequence=1, step=step, started_s=5.0)
    return ReceivedReport(report=msgspec.structs.replace(plain, **changes), received_at=received_at)


def a_final_report(outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> ReceivedReport:
    return a_report(Step.SWEEP, **{"result": a_result(outcome), **changes})


def a_plan_report(**changes: Any) -> ReceivedReport:
    """The final one of a run that has kept its plan."""
    kept = KeptPlan(digest=DIGEST, architecture=ARCHITECTURE)
    result = a_result(Outcome.FAILED, reason="AwaitingApproval", kept_plan=kept)
    return a_report(Step.SWEEP, **{"result": result, "plan": a_plan, **changes})


# ---- snapshots


def a_snapshot(*, pod: Agent | None = running_pod, claimed: bool = True, **changes: Any) -> Snapshot:
    """A run that was given to an agent, connected and silent; `claimed=False`: a task in the queue."""
    task = changes.get("task", a_task())
    snapshot = Snapshot(
        task=task,
        claim=a_claim(task) if claimed else None,
        agent=pod if claimed else None,
        agent_is_gone=False,
        session=a_session() if claimed else None,
        report=None,
        pool_grace_s=None if claimed else 403,
        allowed_approval=None if claimed else frozenset(ApprovalMode),
        pool_env_from=(),
        queueing=None,
        superseded_by="",
        state_lock=None,
        log_kept=None,
        report_key=KEY if claimed else "",
        epoch=EPOCH,
        last_status_write_at=0.0,
        runs=1,
    )
    return replace(snapshot, **changes)


def a_start(**changes: Any) -> Start:
    """The Start that `a_snapshot()` leads to."""
    start = Start(
        epoch=EPOCH,
        run_id=RUN,
        task=TaskRef(namespace="team-a", name="network-1", uid=UID),
        action=Action.APPLY,
        workspace="network",
        source=Source(inline={"main.tf": ""}),
        timeout_s=3600,
        cancel_grace_s=300,
        report_key=KEY,
    )
    return msgspec.structs.replace(start, **changes)


def a_cancel(**changes: Any) -> Cancel:
    """The Cancel that `spec.cancel` leads to."""
    cancel = Cancel(epoch=EPOCH, run_id=RUN, reason=CancelReason.USER, grace_s=300, report_key=KEY)
    return msgspec.structs.replace(cancel, **changes)


def a_supersede(**changes: Any) -> Cancel:
    """The Cancel that a newer task, network-2, leads to."""
    return a_cancel(**{"superseded_by": "network-2", **changes})


an_ack = Ack(epoch=EPOCH, run_id=RUN)
a_free_lock = StateLock(is_readable=True, holder="")
a_held_lock = StateLock(is_readable=True, holder="lock-id")
an_unreadable_lock = StateLock(is_readable=False, holder="")
in_line = Queueing(position=1, waiting_for="an agent of pool default to start")
in_vain = Queueing(position=1, waiting_for="", expired="agents have another image now")
a_plan = PlanSummary(add=3, change=1, destroy=0)


# ---- pools


def a_pool(**changes: Any) -> Pool:
    pool = Pool(
        namespace="team-a",
        name="default",
        uid="pool-uid",
        generation=1,
        resource_version="30",
        is_deleting=False,
        has_finalizer=True,
        engine="Terraform",
        image="",
        min_idle=0,
        max_agents=10,
        max_tasks_per_agent=1,
        idle_timeout_s=600,
        drain_policy=DrainPolicy.LADDER,
        service_account="terrahalt-agent",
        image_pull_secrets=(),
        pod_template={},
        operator_loss_s=None,
        termination_grace_s=403,
        allowed_approval=frozenset(ApprovalMode),
        allow_metadata=(),
        env_from=(),
        providers=ProvidersSpec(),
        refresh_credentials="",
        status={},
    )
    return replace(pool, **changes)


def a_view(
    number: int = 1,
    *,
    session: Session | None = None,
    claim: Claim | None = None,
    is_ours: bool = True,
    **pod: Any,
) -> AgentView:
    """Agent `number` of the pool: starting, unless it has a session."""
    uid, name = f"pod-{number}", f"default-agent-{number}"
    plain = an_agent(uid=uid, name=name, created_at=NOW - 100 + number, container_id=f"containerd://{number}")
    return AgentView(replace(plain, **pod), session, claim, is_ours)


def an_idle(number: int = 1, **pod: Any) -> AgentView:
    return a_view(number, session=a_session(fingerprint=f"sha256:{number}"), **pod)


def a_busy(number: int = 1, *, task: str = "busy", **pod: Any) -> AgentView:
    claim = a_claim(a_task(name=task, uid=task, workspace=task), pod_uid=f"pod-{number}")
    return a_view(number, session=holding(), claim=claim, **{"task_label": task, "run_label": RUN, **pod})


def a_waiting(number: int, workspace: str = "", **changes: Any) -> Task:
    """The task that came `number`th, in a workspace of its own unless one is given."""
    name = f"task-{number}"
    made = {"name": name, "uid": name, "workspace": workspace or name, "created_at": NOW - 100 + number}
    return a_task(**{**made, **changes})


def a_pool_snapshot(**changes: Any) -> PoolSnapshot:
    """`waiting` are in line first for their workspaces in their order, unless `first_in_line` says other."""
    waiting: tuple[Task, ...] = changes.get("waiting", ())
    first: dict[str, str] = {}
    for task in waiting:
        first.setdefault(claim_name(task.namespace, task.spec.workspace, task.spec.backend), task.uid)
    snapshot = PoolSnapshot(
        name="default",
        pool=a_pool(),
        agents=(),
        waiting=(),
        first_in_line=first,
        holders={},
        has_budget=False,
        refused_budget="",
        refused_budget_at=-math.inf,
        has_image=True,
        refused_template="",
        template_hash="new",
        refused="",
        refused_at=0.0,
        failed_starts=0,
        last_failed_start_at=0.0,
        last_failed_start="",
        begins_at=-math.inf,
        epoch=EPOCH,
    )
    return replace(snapshot, **changes)


# ---- metrics


def metrics(*, leads: bool = True, watch_age_s: float | None = 1.0, cancel_pending_s: float = 0.0) -> Metrics:
    """Of an operator that leads, and has counted nothing yet."""
    return Metrics("0.1.0", Sights(lambda: leads, lambda: watch_age_s, lambda: cancel_pending_s))
