"""A plain run costs few writes: the reports of an agent, fed through `decide` in virtual time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.core.actions import ReleaseClaim, Send, WriteStatus
from terrahalt_operator.core.decide import PROGRESS_INTERVAL_S, decide
from terrahalt_operator.core.model import ApprovalMode, ReceivedReport, Session, Snapshot, Task, TaskStatus
from terrahalt_operator.core.status import differs_only_in_progress
from terrahalt_protocol.messages import PlanSummary, Report, Start, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, RUN

Writes = list[tuple[float, TaskStatus]]


def a_plain_run(*, step_s: float, resources: int) -> list[tuple[float, Report]]:
    """What an agent says in an apply, as its core says it: each step, the plan, progress every second, the end."""
    plan = PlanSummary(add=resources)
    told: list[tuple[float, Report]] = []

    def tell(at_s: float, step: Step, message: str, **more: Any) -> None:
        if step is not Step.PREPARE:
            more["source_commit"] = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
        report = b.a_report(step, sequence=len(told) + 1, message=message, started_s=at_s, **more).report
        told.append((at_s, report))

    tell(0.01, Step.PREPARE, "preparing the working directory")
    tell(step_s, Step.INIT, "terraform init")
    tell(2 * step_s, Step.PLAN, "terraform plan")
    tell(2.9 * step_s, Step.PLAN, "terraform plan", plan=plan)
    tell(3 * step_s, Step.APPLY, "terraform apply", plan=plan)
    for done in range(1, resources):
        more = {"plan": plan, "resources_done": done, "resources_current": f"aws_vpc.v[{done}]"}
        tell(3 * step_s + done * step_s / resources, Step.APPLY, "terraform apply", **more)
    result = b.a_result(message="apply complete")
    tell(4 * step_s, Step.SWEEP, "apply complete", plan=plan, resources_done=resources, result=result)
    return told


def play(task: Task, reports: list[tuple[float, Report]], *, runs: int = 1) -> Writes:
    """Every status that is written, when the operator looks at each report and whenever it asked to be woken."""
    agenda: list[tuple[float, Report | None]] = [(0.0, None), *reports]
    session: Session = b.a_session()
    snapshot: Snapshot = b.a_snapshot(task=task, session=session, runs=runs)
    writes: Writes = []
    while agenda:
        at_s, report = agenda.pop(0)
        now = NOW + at_s
        if report is not None:
            received = ReceivedReport(report=report, received_at=now)
            snapshot = replace(snapshot, report=received, session=b.holding(sent_start=RUN))
        decision = decide(snapshot, now)
        for action in decision.actions:
            if isinstance(action, Send) and isinstance(action.command, Start):
                snapshot = replace(snapshot, session=b.a_session(sent_start=RUN))
            if isinstance(action, WriteStatus):
                writes.append((at_s, action.status))
                new = replace(snapshot.task, status=action.status)
                snapshot = replace(snapshot, task=new, last_status_write_at=now)
        if any(isinstance(action, ReleaseClaim) for action in decision.actions):
            return writes
        if decision.wake_after_s is not None:
            woken_at_s = at_s + decision.wake_after_s + 1e-6
            if not agenda or agenda[0][0] > woken_at_s:
                agenda.insert(0, (woken_at_s, None))
    return writes


def test_a_quick_run_costs_five_writes() -> None:
    writes = play(b.a_task(), a_plain_run(step_s=0.4, resources=50))
    assert [status.phase for _, status in writes] == ["Assigned", "Preparing", "Planning", "Applying", "Succeeded"]


def test_a_plan_and_its_apply_after_an_approval_cost_four_writes_each() -> None:
    reports = a_plain_run(step_s=0.4, resources=50)
    kept = b.a_plan_report(sequence=99).report
    planning = [(at_s, report) for at_s, report in reports if report.step in (Step.PREPARE, Step.INIT, Step.PLAN)]
    first = play(b.a_task(approval=ApprovalMode.MANUAL), [*planning, (1.2, kept)])
    assert [status.phase for _, status in first] == ["Assigned", "Preparing", "Planning", "AwaitingApproval"]
    applying = [(at_s, report) for at_s, report in reports if report.step is not Step.PLAN]
    approved = b.a_planned_task(approved_plan_digest=b.DIGEST, phase="Queued")
    second = play(approved, applying)
    assert [status.phase for _, status in second] == ["Assigned", "Preparing", "Applying", "Succeeded"]


@pytest.mark.parametrize("step_s", [0.4, 3.0, 30.0])
def test_a_run_of_any_length_costs_five_writes_besides_progress(step_s: float) -> None:
    task = b.a_task()
    writes = play(task, a_plain_run(step_s=step_s, resources=100))
    before = [task.status, *(status for _, status in writes)]
    count = sum(not differs_only_in_progress(old, new) for old, new in pairwise(before))
    assert count <= 5


@pytest.mark.parametrize(("runs", "interval_s"), [(1, PROGRESS_INTERVAL_S), (100, PROGRESS_INTERVAL_S), (1_000, 20.0)])
def test_progress_is_written_once_in_two_seconds_and_fifty_times_a_second_of_all_runs(
    runs: int, interval_s: float
) -> None:
    writes = play(b.a_task(), a_plain_run(step_s=10 * interval_s, resources=500), runs=runs)
    progress = [(at_s, s) for at_s, s in writes if s.progress and s.phase == "Applying"]
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(progress)]
    assert len(gaps) >= 8
    assert min(gaps) >= interval_s
    began = {s.phase: at_s for at_s, s in reversed(writes)}
    told_s = {"Preparing": 0.01} | {
        phase: n * interval_s for phase, n in (("Planning", 20), ("Applying", 30), ("Succeeded", 40))
    }
    assert {phase: began[phase] for phase in told_s} == told_s, "a phase waits for nothing"


def test_the_last_progress_is_written_although_no_report_follows() -> None:
    reports = a_plain_run(step_s=0.4, resources=3)[:-1]
    last = play(b.a_task(), reports)[-1][1]
    assert last.progress is not None
    assert last.progress.done == 2


def test_a_lost_agents_silence_costs_no_writes() -> None:
    snapshot = b.a_snapshot(task=b.a_task(status=b.a_status("Applying")), pod=b.lost, session=None)
    (write,) = decide(snapshot, NOW).actions
    assert isinstance(write, WriteStatus)
    snapshot = replace(snapshot, task=replace(snapshot.task, status=write.status))
    for minutes in range(1, 100):
        assert decide(snapshot, NOW + minutes * 60.0).actions == ()


def test_what_reports_repeat_is_not_written_again() -> None:
    report = b.a_report(message="terraform apply")
    snapshot = b.a_snapshot(task=b.a_given_task(), session=b.holding(), report=report)
    (write,) = decide(snapshot, NOW).actions
    assert isinstance(write, WriteStatus)
    task = replace(snapshot.task, status=write.status)
    again = ReceivedReport(report=msgspec.structs.replace(report.report, sequence=9), received_at=NOW + 50)
    assert decide(replace(snapshot, task=task, report=again), NOW + 50).actions == ()
