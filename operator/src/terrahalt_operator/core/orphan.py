"""What to do about a claim whose task is gone: its run is wound down by the ladder, then released.

A task keeps its finalizer until its run has ended, so this happens only where somebody took the
finalizer away by force. The evidence that invariant 1 asks for is asked for here too: a workspace
is not given away under a live terraform. Pure; called by `reconciler`.
"""

from __future__ import annotations

from terrahalt_operator.core.actions import Decision, ReleaseClaim, Send, TaskAction
from terrahalt_operator.core.model import Agent, Claim, Session
from terrahalt_protocol.messages import Ack, Cancel, CancelReason, Report


def decide_orphan(
    claim: Claim, agent: Agent | None, session: Session | None, report: Report | None, *, report_key: str, epoch: int
) -> Decision:
    """The actions for one claim without a task; `agent` is the pod that the claim names, if it exists."""
    ended = agent is not None and agent.ended is not None and agent.ended.container_id == claim.container_id
    if ended or (report is not None and report.result is not None):
        actions: list[TaskAction] = [ReleaseClaim(claim)]
        if session is not None and claim.run_id in session.runs:
            actions.insert(0, Send(claim.pod_uid, Ack(epoch=epoch, run_id=claim.run_id)))
        return Decision(tuple(actions))
    if session is None:
        return Decision()
    cancel = Cancel(epoch=epoch, run_id=claim.run_id, reason=CancelReason.DELETION, report_key=report_key)
    return Decision((Send(claim.pod_uid, cancel),) if session.sent_cancel != cancel else ())
