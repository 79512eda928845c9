"""A claim whose task is gone is wound down, and released only with the evidence of invariant 1."""

from __future__ import annotations

import pytest

from terrahalt_operator.core.actions import Decision, ReleaseClaim, Send
from terrahalt_operator.core.model import Agent, Session
from terrahalt_operator.core.orphan import decide_orphan
from terrahalt_protocol.messages import Cancel, CancelReason, Report, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import EPOCH, KEY, OTHER_RUN, POD_UID, RUN

CANCEL = Cancel(epoch=EPOCH, run_id=RUN, reason=CancelReason.DELETION, report_key=KEY)
RELEASE = ReleaseClaim(b.a_claim())


def decide(agent: Agent | None, session: Session | None, report: Report | None = None) -> Decision:
    return decide_orphan(b.a_claim(), agent, session, report, report_key=KEY, epoch=EPOCH)


def test_its_run_is_cancelled_once_on_each_connection() -> None:
    assert decide(b.running_pod, b.holding()) == Decision((Send(POD_UID, CANCEL),))
    assert decide(b.running_pod, b.holding(sent_cancel=CANCEL)) == Decision()


def test_a_run_that_never_began_is_cancelled_too_so_that_it_leaves_a_tombstone() -> None:
    assert decide(b.running_pod, b.a_session()) == Decision((Send(POD_UID, CANCEL),))


@pytest.mark.parametrize("pod", [b.running_pod, b.collected_pod, b.pod_of_another_container, b.lost])
def test_without_evidence_its_workspace_stays_held(pod: Agent | None) -> None:
    assert decide(pod, None) == Decision()


def test_a_report_without_a_result_is_no_evidence() -> None:
    assert decide(b.running_pod, b.holding(sent_cancel=CANCEL), b.a_report(Step.SWEEP).report) == Decision()


def test_the_report_of_its_end_releases_it_and_the_agent_may_forget() -> None:
    report = b.a_final_report().report
    assert decide(b.running_pod, b.holding(), report) == Decision((Send(POD_UID, b.an_ack), RELEASE))
    assert decide(b.lost, None, report) == Decision((RELEASE,))


def test_the_end_of_its_container_releases_it() -> None:
    assert decide(b.ended_pod, None) == Decision((RELEASE,))
    assert decide(b.ended_pod, b.holding(OTHER_RUN)) == Decision((RELEASE,))
