"""Whether a task fits its pool: its approval, and its end, which the kubelet must not cut short.

The formula is `terrahalt_protocol.budget`. Asked by `decide`, which refuses a task that fits into no pod of
its pool and hurries a run whose pod is ended with less, and by `schedule`, which gives it no agent. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from terrahalt_operator.core.model import Agent, ApprovalMode, ReceivedReport, TaskSpec
from terrahalt_protocol import budget
from terrahalt_protocol.messages import Action, CancelReason

UNTOLD_GRACE_S = 5.0
"""What a run gets in a pod that its kubelet ends of its own accord, with a grace that nobody else knows:
terraform stops in milliseconds, where a provider does not hang."""
NEWS_S = 1.0
"""After a report, for the watch to tell of the deletion that may have been its cause."""


def fits(spec: TaskSpec, pod_grace_s: int) -> bool:
    return budget.pod_grace_s(spec.cancel_grace_seconds) <= pod_grace_s


def misfit(spec: TaskSpec, pool_grace_s: int) -> str:
    """Why no pod of its pool can hold it, and what to do; empty: they can."""
    if fits(spec, pool_grace_s):
        return ""
    needed_s = budget.pod_grace_s(spec.cancel_grace_seconds)
    return (
        f"the end of this task could take {needed_s} s ({budget.formula(spec.cancel_grace_seconds)}), but "
        f"terminationGracePeriodSeconds of pool {spec.pool_ref.name} is {pool_grace_s}: create it with "
        f"cancelGraceSeconds of at most {budget.cancel_grace_s(pool_grace_s)}, or set the pool's "
        f"terminationGracePeriodSeconds to {needed_s}"
    )


def refused_approval(spec: TaskSpec, allowed: Collection[ApprovalMode]) -> str:
    """Why its pool takes no task that applies so, and what to do; empty: it does."""
    if spec.action is Action.PLAN or spec.approval in allowed:
        return ""
    return (
        f"pool {spec.pool_ref.name} allows no approval: {spec.approval}, as its allowedApproval is "
        f"{', '.join(sorted(allowed))}: create the task with another approval, or use another pool"
    )


def hurry_at(agent: Agent | None, received: ReceivedReport | None) -> float | None:
    """When a run is to be ended with Force, so that its report is out before its kubelet kills; None: its pod stays."""
    if agent is None:
        return None
    if agent.killed_at is not None:
        return agent.killed_at - budget.FORCE_S
    cancel = received.report.cancel if received else None
    if received is None or cancel is None or cancel.reason is not CancelReason.POD_TERMINATION:
        return None
    began_at = received.received_at - (cancel.ages.received_s or 0.0)
    return max(began_at + UNTOLD_GRACE_S, received.received_at + NEWS_S)
