"""A person between plan and apply: what waits, what is applied, and what ends instead."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.core import model, status
from terrahalt_operator.core.actions import (
    CreateAgents,
    CreateClaim,
    Decision,
    ReleaseClaim,
    RemoveTaskFinalizer,
    Send,
    WriteStatus,
)
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import ApprovalMode, Queueing, Snapshot, Task, TaskStatus
from terrahalt_operator.core.pool_snapshot import AgentView
from terrahalt_operator.core.schedule import schedule
from terrahalt_protocol.messages import (
    Ack,
    Action,
    Approval,
    ApprovedPlan,
    Cancel,
    Outcome,
    PlanSummary,
    Source,
    Start,
    Step,
)
from tests.operator_core.builders import (
    APPROVE,
    ARCHITECTURE,
    DIGEST,
    EPOCH,
    IMAGE,
    NOW,
    PLAN_RUN,
    POD_UID,
    RUN,
    a_claim,
    a_final_report,
    a_kept_plan,
    a_plan_report,
    a_planned_task,
    a_pool,
    a_pool_snapshot,
    a_report,
    a_session,
    a_snapshot,
    a_start,
    a_status,
    a_task,
    a_view,
    an_idle,
    at,
    holding,
    in_line,
    running_pod,
)

FILES = Source(inline={"main.tf": ""})
MANUAL = ApprovalMode.MANUAL


def planning(**changes: object) -> Snapshot:
    """Its run has kept the plan, and says so."""
    task = a_task(approval=MANUAL, status=a_status(model.PLANNING, started_at=at(-100)), **changes)
    return a_snapshot(task=task, session=holding(), report=a_plan_report())


def written(decision: Decision) -> TaskStatus:
    (action,) = [a for a in decision.actions if isinstance(a, WriteStatus)]
    return action.status


def waiting(**changes: object) -> Snapshot:
    return a_snapshot(task=a_planned_task(**changes), claimed=False)


def approved(**changes: object) -> Task:
    return a_planned_task(approved_plan_digest=DIGEST, **changes)


def applying(**changes: object) -> Snapshot:
    """The second run was given to an agent."""
    return a_snapshot(task=approved(phase=model.QUEUED, **changes))


# ---- the run that plans


@pytest.mark.parametrize("action", [Action.APPLY, Action.DESTROY])
def test_a_run_is_told_to_keep_its_plan_by_what_older_agents_can_not_run(action: Action) -> None:
    (_, _, sent) = decide(a_snapshot(task=a_task(approval=MANUAL, action=action)), NOW).actions
    start = a_start(action=action, source=Source(), approval=Approval(source=FILES))
    assert sent == Send(POD_UID, start)


def test_the_source_is_nowhere_else_with_a_backend_either() -> None:
    task = a_task(approval=MANUAL, backend=model.BackendSpec(type="s3", config={"bucket": "b"}))
    (_, _, sent) = decide(a_snapshot(task=task), NOW).actions
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Start)
    assert sent.command.backend is not None
    assert (sent.command.source, sent.command.backend.source) == (Source(), Source())
    assert sent.command.files_from == FILES


def test_a_plan_needs_no_approval() -> None:
    (_, _, sent) = decide(a_snapshot(task=a_task(approval=MANUAL, action=Action.PLAN)), NOW).actions
    assert sent == Send(POD_UID, a_start(action=Action.PLAN))


def test_a_kept_plan_is_on_record_before_its_agent_forgets_it_and_its_workspace_is_free() -> None:
    s = planning()
    decision = decide(s, NOW)
    assert decision == Decision(
        (
            WriteStatus(s.task, written(decision)),
            Send(POD_UID, Ack(epoch=EPOCH, run_id=RUN)),
            ReleaseClaim(a_claim(s.task)),
        )
    )
    new = written(decision)
    assert (new.phase, new.run_id, new.agent, new.result, new.finished_at) == ("AwaitingApproval", "", None, None, "")
    assert new.plan == a_kept_plan(ready_at=at(0), run_id=RUN)


def test_the_message_has_the_very_command_that_approves() -> None:
    message = written(decide(planning(), NOW)).message
    assert f"kubectl -n team-a patch terraformtask network-1 --type merge -p '{APPROVE}'" in message
    assert "kubectl -n team-a logs --tail=-1 -l terrahalt.dev/last-task=network-1" in message
    assert message.startswith("3 to add, 1 to change, 0 to destroy; ")
    assert status.timestamp(NOW + 86_400) in message


def test_who_waits_for_a_task_by_its_conditions_sees_that_it_is_not_over() -> None:
    conditions = {c.type: (c.status, c.reason) for c in written(decide(planning(), NOW)).conditions}
    assert conditions["Reconciling"] == ("True", "AwaitingApproval")
    assert conditions["Finished"] == ("False", "AwaitingApproval")
    assert conditions["Ready"] == ("False", "AwaitingApproval")
    assert conditions["Scheduled"] == ("False", "AwaitingApproval")
    assert conditions["PlanReady"] == ("True", "Planned")


@pytest.mark.parametrize(
    ("changes", "reason"), [({"cancel": True}, "CancelledByUser"), ({"is_deleting": True}, "CancelledByDeletion")]
)
def test_a_cancel_that_came_too_late_for_the_plan_ends_the_task_before_it_waits(
    changes: dict[str, bool], reason: str
) -> None:
    new = written(decide(planning(**changes), NOW))
    assert (new.phase, new.result and new.result.reason) == ("Cancelled", reason)
    assert new.plan is not None
    assert not new.plan.digest


def test_a_claim_that_a_crash_left_behind_is_released_and_then_the_task_is_looked_at_again() -> None:
    task = a_planned_task()
    s = a_snapshot(task=task, claim=a_claim(task, run_id=PLAN_RUN), session=holding(PLAN_RUN))
    forget = Send(POD_UID, Ack(epoch=EPOCH, run_id=PLAN_RUN))
    assert decide(s, NOW) == Decision((forget, ReleaseClaim(a_claim(task, run_id=PLAN_RUN))), wake_after_s=0.0)


@pytest.mark.parametrize("changes", [{"cancel": True}, {"approved_plan_digest": DIGEST}, {"is_deleting": True}])
def test_whatever_comes_meanwhile_that_claim_starts_nothing(changes: dict[str, object]) -> None:
    task = a_planned_task(**changes)
    s = a_snapshot(task=task, claim=a_claim(task, run_id=PLAN_RUN), session=a_session())
    assert decide(s, NOW).actions == (ReleaseClaim(a_claim(task, run_id=PLAN_RUN)),)


def test_a_claim_that_who_leads_no_more_made_late_for_a_task_that_waits_starts_nothing_and_ends_with_the_task() -> None:
    s = a_snapshot(task=a_planned_task(), session=a_session())
    assert written(decide(s, NOW)).phase == model.AWAITING_APPROVAL
    assert [type(action) for action in decide(s, NOW).actions] == [WriteStatus]
    too_late = decide(s, NOW + 86_400)
    assert [type(action) for action in too_late.actions] == [WriteStatus, ReleaseClaim]
    assert written(too_late).phase == "Failed"


def test_a_cancel_ends_it_by_the_agent_of_that_claim() -> None:
    s = a_snapshot(task=a_planned_task(cancel=True), session=a_session())
    (sent, _, _) = decide(s, NOW).actions
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Cancel)


def test_what_the_agent_of_that_claim_has_begun_all_the_same_is_believed() -> None:
    s = a_snapshot(task=a_planned_task(), session=holding(), report=a_final_report())
    assert written(decide(s, NOW)).phase == "Succeeded"


# ---- the task that waits


def test_a_task_that_waits_does_nothing_until_its_time_is_over() -> None:
    s = waiting()
    on_record = status.awaiting_approval(s.task, NOW)
    s = replace(s, task=replace(s.task, status=on_record))
    assert decide(s, NOW) == Decision(wake_after_s=86_400 - 3600)


def test_a_plan_that_nobody_approves_in_time_is_given_up() -> None:
    s = waiting(approval_timeout_seconds=3600)
    assert written(decide(s, NOW - 1)).phase == model.AWAITING_APPROVAL
    new = written(decide(s, NOW))
    assert (new.phase, new.result and new.result.reason) == ("Failed", "ApprovalTimedOut")
    assert new.message == "nobody approved its plan for 3600 s; nothing was changed"


def test_a_task_that_waits_is_cancelled_at_once() -> None:
    new = written(decide(waiting(cancel=True), NOW))
    assert (new.phase, new.result and new.result.reason) == ("Cancelled", "CancelledByUser")
    assert new.message == "cancelled before its plan was applied; nothing was changed"
    assert new.cancel is not None
    assert new.cancel.rung == "NotStarted"


def test_a_task_that_waits_is_deleted_at_once() -> None:
    s = waiting(is_deleting=True)
    assert decide(s, NOW) == Decision((RemoveTaskFinalizer(s.task),))


@pytest.mark.parametrize(
    ("spec", "is_refused"),
    [
        ({"approval": ApprovalMode.AUTOMATIC}, True),
        ({"approval": MANUAL}, False),
        ({"approval": ApprovalMode.AUTOMATIC, "action": Action.PLAN}, False),
    ],
)
def test_a_pool_may_refuse_to_apply_without_a_person(spec: dict[str, object], is_refused: bool) -> None:
    task = a_task(**spec)
    pool = a_pool(allowed_approval=frozenset({MANUAL}))
    s = a_snapshot(task=task, claimed=False, allowed_approval=pool.allowed_approval, queueing=in_line)
    new = written(decide(s, NOW))
    assert (new.result is not None and new.result.reason == "ApprovalNotAllowed") is is_refused
    given = schedule(a_pool_snapshot(pool=pool, agents=(an_idle(),), waiting=(task,)), NOW)
    assert any(isinstance(a, CreateClaim) for a in given.actions) is not is_refused
    if is_refused:
        assert {c.type: c.status for c in new.conditions}["Accepted"] == "False"
        assert "allowedApproval is Manual: create the task with another approval" in new.message


# ---- the run that applies


def test_the_second_run_gets_what_was_approved_and_what_is_left_of_the_time() -> None:
    (_, _, sent) = decide(applying(), NOW).actions
    plan = ApprovedPlan(run_id=PLAN_RUN, digest=DIGEST, summary=PlanSummary(add=3, change=1))
    start = a_start(source=Source(), approval=Approval(source=FILES, plan=plan), timeout_s=3500)
    assert sent == Send(POD_UID, start)


def test_a_plan_that_took_all_of_the_time_leaves_its_apply_none() -> None:
    (_, _, sent) = decide(applying(timeout_seconds=60), NOW).actions
    assert isinstance(sent, Send)
    assert isinstance(sent.command, Start)
    assert sent.command.timeout_s == 1


@pytest.mark.parametrize("phase", [model.AWAITING_APPROVAL, model.QUEUED])
def test_the_second_run_shows_its_own_agent_and_keeps_what_was_approved(phase: str) -> None:
    s = a_snapshot(task=approved(phase=phase))
    assert written(decide(s, NOW)).phase == model.ASSIGNED
    s = replace(s, session=holding(), report=a_report(Step.APPLY, plan=PlanSummary(add=3, change=1)))
    new = written(decide(s, NOW))
    assert (new.phase, new.run_id, new.plan) == ("Applying", RUN, a_kept_plan())
    assert new.agent is not None
    assert new.started_at == at(-3700)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_its_end_is_the_end_of_the_task(outcome: Outcome) -> None:
    s = replace(applying(), session=holding(), report=a_final_report(outcome))
    assert written(decide(s, NOW)).phase == outcome.value


def test_a_task_has_one_plan_whatever_its_apply_says_that_it_has_kept() -> None:
    """Nobody would ever approve another: the first approval can't be changed."""
    s = replace(applying(), session=holding(), report=a_plan_report())
    new = written(decide(s, NOW))
    assert (new.phase, new.plan) == ("Failed", a_kept_plan())


# ---- who gets it


def test_a_task_that_is_approved_gets_an_agent_like_the_one_that_planned() -> None:
    other = an_idle(1, image="sha256:0ther")
    same = an_idle(2)
    decision = schedule(a_pool_snapshot(agents=(other, same), waiting=(approved(),)), NOW)
    assert [a.agent.name for a in decision.actions if isinstance(a, CreateClaim)] == [same.agent.name]


def of_machine(number: int, architecture: str, **pod: Any) -> AgentView:
    session = a_session()
    hello = msgspec.structs.replace(session.hello, architecture=architecture)
    return a_view(number, session=replace(session, hello=hello), **pod)


@pytest.mark.parametrize(
    ("agents", "says"),
    [
        ((an_idle(1, image="sha256:0ther"),), f"image {IMAGE}, and agent default-agent-1 has sha256:0ther"),
        (
            (a_view(1, image="sha256:0ther", session=holding(), claim=a_claim(pod_uid="pod-1")),),
            f"image {IMAGE}, and agent default-agent-1 has sha256:0ther",
        ),
        ((of_machine(1, "aarch64"),), f"architecture {ARCHITECTURE}, and agent default-agent-1 has aarch64"),
    ],
)
def test_where_all_agents_have_become_others_the_plan_has_expired(agents: tuple[AgentView, ...], says: str) -> None:
    task = approved()
    decision = schedule(a_pool_snapshot(agents=agents, waiting=(task,)), NOW)
    assert not any(isinstance(a, CreateClaim | CreateAgents) for a in decision.actions)
    queueing = decision.queueing[task.uid]
    assert queueing.expired == f"the plan was made with {says}"
    new = written(decide(a_snapshot(task=task, claimed=False, queueing=queueing), NOW))
    assert (new.phase, new.result and new.result.reason) == ("Failed", "PlanExpired")
    assert new.message.endswith("nothing was changed: plan anew, by a new task")


@pytest.mark.parametrize(
    "agents",
    [
        (),
        (a_view(1, image=""),),
        (an_idle(1, image="sha256:0ther", template_hash="old"),),
        (an_idle(1, image="sha256:0ther"), a_view(2, session=holding(), claim=a_claim(pod_uid="pod-2"))),
    ],
    ids=["none", "one that starts", "one that is replaced", "one like it is busy"],
)
def test_otherwise_it_waits_for_one(agents: tuple[AgentView, ...]) -> None:
    task = approved()
    decision = schedule(a_pool_snapshot(agents=agents, waiting=(task,)), NOW)
    assert decision.queueing[task.uid].expired == ""
    new = written(decide(a_snapshot(task=task, claimed=False, queueing=decision.queueing[task.uid]), NOW))
    assert new.phase == model.QUEUED


def test_what_is_not_known_is_no_difference() -> None:
    for kept, view in (
        (a_kept_plan(image="", architecture=""), an_idle(1, image="sha256:0ther")),
        (a_kept_plan(), of_machine(1, "", image="")),
    ):
        decision = schedule(a_pool_snapshot(agents=(view,), waiting=(approved(kept=kept),)), NOW)
        assert any(isinstance(a, CreateClaim) for a in decision.actions)


def test_a_blocked_task_has_not_expired_and_a_first_run_never_does() -> None:
    other = an_idle(1, image="sha256:0ther")
    task = approved()
    holders = {a_claim(task).name: "another"}
    decision = schedule(a_pool_snapshot(agents=(other,), waiting=(task,), holders=holders), NOW)
    assert decision.queueing[task.uid].expired == ""
    first = a_task(approval=MANUAL)
    decision = schedule(a_pool_snapshot(agents=(other,), waiting=(first,)), NOW)
    assert any(isinstance(a, CreateClaim) for a in decision.actions)


def test_an_end_that_was_decided_upon_is_not_written_for_a_task_that_has_an_agent() -> None:
    expired = Queueing(position=1, waiting_for="", expired="it is another image")
    s = replace(applying(), queueing=expired, agent=running_pod)
    assert written(decide(s, NOW)).phase == model.ASSIGNED
