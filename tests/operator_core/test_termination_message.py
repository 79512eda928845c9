"""The final report in the pod's termination message: believed only if the run signed it, and once it is over."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from terrahalt_operator.core.model import Agent, Claim, ReceivedReport
from terrahalt_protocol.messages import Outcome, StateCondition
from terrahalt_protocol.signing import report_key, seal
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, OTHER_RUN, RUN
from tests.simulation.operators import SECRET
from tests.simulation.simulation import Simulation

REPORT = b.a_final_report().report
KEY = report_key(SECRET, RUN)
SEALED = seal(REPORT, KEY).decode()


def an_ended_agent(message: str = SEALED, **end: object) -> Agent:
    ended = replace(b.an_end(message=message, finished_at=NOW - 3600), **end)
    return replace(b.ended_pod, ended=ended)


def heard(agent: Agent | None, claim: Claim | None = None) -> ReceivedReport | None:
    return Simulation().lives[0].world.report(claim or b.a_claim(), agent)


def test_4_the_report_counts_from_when_it_was_written_however_long_ago() -> None:
    assert heard(an_ended_agent()) == ReceivedReport(report=REPORT, received_at=NOW - 3600)


@pytest.mark.parametrize("containers", [1, 7, 15])
def test_4_it_is_believed_too_where_a_pod_of_many_containers_has_room_for_the_beginning_of_it(containers: int) -> None:
    """The kubelet keeps 12,288 bytes for all of them."""
    result = b.a_result(
        Outcome.FAILED,
        reason="TimedOut",
        message="killed " * 50,
        state=StateCondition.INCOMPLETE,
        open_addresses=tuple(f"module.network.aws_route.private[{n}]" for n in range(20)),
        open_address_count=20,
    )
    report = replace(REPORT, result=result)
    cut = seal(report, KEY)[: 12_288 // containers].decode()
    received = heard(an_ended_agent(cut))
    assert received is not None
    assert received.received_at == NOW - 3600
    told = received.report.result
    assert told is not None
    assert replace(told, message="", open_addresses=()) == replace(result, message="", open_addresses=())
    assert (received.report == report) is (containers == 1)


def test_1_what_a_living_container_wrote_is_no_report() -> None:
    """Where the agent can't end its processes, only the end of the container makes its report true."""
    assert heard(b.running_pod) is None
    assert heard(b.collected_pod) is None
    assert heard(b.lost) is None


@pytest.mark.parametrize(
    "message",
    [
        "",
        "panic: all is lost",
        '{"report": "{}", "hmac": "00"}',
        SEALED.replace("Succeeded", "Cancelled"),
        seal(REPORT, report_key(b"another secret", RUN)).decode(),
        seal(REPORT, report_key(SECRET, OTHER_RUN)).decode(),
        SEALED[:-20],
        f"run {RUN}: its agent has written no report; see its log".ljust(3_500),
        '{"report":' + "[" * 3_000,
    ],
    ids=[
        "nothing",
        "text",
        "no signature",
        "changed",
        "another installation",
        "another run's key",
        "cut",
        "room",
        "deep",
    ],
)
def test_what_user_code_may_have_written_is_no_report(message: str) -> None:
    assert heard(an_ended_agent(message)) is None


def test_9_the_report_of_another_container_or_run_changes_nothing() -> None:
    assert heard(an_ended_agent(container_id="containerd://2nd")) is None
    assert heard(an_ended_agent(), b.a_claim(run_id=OTHER_RUN)) is None
