"""kstatus reads whatever status the operator's core can write as a person would, and what has none yet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from msgspec.structs import replace

from terrahalt_operator.core import model, status
from terrahalt_operator.core.actions import WriteStatus
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import CancelStatus, PlanStatus, Pool, ResultStatus, Snapshot, Task, TaskStatus
from terrahalt_operator.core.pool_status import pool_status
from terrahalt_operator.core.schedule import schedule
from terrahalt_protocol.messages import Outcome, RefusalCode
from tests.kstatus.library import readings
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, a_pool_snapshot, a_report, a_snapshot, a_task, holding
from tests.operator_core.strategies import snapshots
from tests.repository import reasons

Json = dict[str, Any]

CRDS = Path(__file__).parents[2] / "crds"
RUNNING = a_snapshot(session=holding(), report=a_report(plan=b.a_plan))


def an_object(kind: str, of: Task | Pool, shown: Json) -> Json:
    meta: Json = {"namespace": of.namespace, "name": of.name, "generation": of.generation}
    if of.is_deleting:
        meta["deletionTimestamp"] = b.at(0)
    return {"apiVersion": "terrahalt.dev/v1alpha1", "kind": kind, "metadata": meta, "status": shown}


def a_task_object(task: Task) -> Json:
    return an_object("TerraformTask", task, msgspec.json.decode(msgspec.json.encode(task.status)))


def after(snapshot: Snapshot) -> Task:
    """The task once what was decided is written."""
    written = [action.status for action in decide(snapshot, NOW).actions if isinstance(action, WriteStatus)]
    return replace(snapshot.task, status=written[-1]) if written else snapshot.task


def as_a_person_would(task: Task) -> str:
    if task.is_deleting:
        return "Terminating"
    if not task.status.is_terminal:
        return "InProgress"
    return "Current" if task.status.phase == model.SUCCEEDED else "Failed"


# ---- tasks


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (a_snapshot(claimed=False, queueing=b.in_line), "InProgress"),
        (a_snapshot(), "InProgress"),
        (RUNNING, "InProgress"),
        (replace(RUNNING, task=a_task(cancel=True)), "InProgress"),
        (replace(RUNNING, task=a_task(is_deleting=True)), "Terminating"),
        (replace(RUNNING, report=b.a_plan_report()), "InProgress"),
        (replace(RUNNING, report=b.a_final_report(Outcome.SUCCEEDED)), "Current"),
        (replace(RUNNING, report=b.a_final_report(Outcome.FAILED)), "Failed"),
        (replace(RUNNING, report=b.a_final_report(Outcome.CANCELLED)), "Failed"),
        (a_snapshot(task=a_task(cancel=True), claimed=False), "Failed"),
        (a_snapshot(task=a_task(stamp="other"), claimed=False), "Failed"),
        (a_snapshot(session=b.a_session(refused=b.a_refusal(RefusalCode.USED))), "Failed"),
    ],
)
def test_each_phase_is_read(snapshot: Snapshot, expected: str) -> None:
    assert readings([a_task_object(after(snapshot))]) == [expected]


def test_every_phase_and_reason_is_read_as_a_person_would() -> None:
    planned = PlanStatus(add=1, change=0, destroy=0)
    cancel = CancelStatus(by="User", requested_at=b.at(-1))
    under_way = [(phase, "") for phase in reasons.UNDER_WAY]
    ends = [(phase, reason) for phase in model.TERMINAL for reason in reasons.of_ends()]
    tasks = []
    for (phase, reason), plan, asked in itertools.product([*under_way, *ends], (None, planned), (None, cancel)):
        result = ResultStatus(reason=reason, state="Complete", lock="Released") if reason else None
        task = a_task(status=TaskStatus(phase=phase, plan=plan, cancel=asked, result=result))
        tasks.append(replace(task, status=status.observed(task, NOW)))
    assert readings(map(a_task_object, tasks)) == [as_a_person_would(task) for task in tasks]


@given(snapshots())
def test_whatever_is_decided_is_read_as_a_person_would(snapshot: Snapshot) -> None:
    task = after(snapshot)
    if task.status is not snapshot.task.status:
        assert readings([a_task_object(task)]) == [as_a_person_would(task)]


def test_a_change_of_the_spec_is_waited_for_also_after_the_end() -> None:
    ended = after(replace(RUNNING, report=b.a_final_report()))
    changed = replace(ended, generation=2)
    followed = after(a_snapshot(task=changed, claimed=False))
    assert readings(map(a_task_object, (ended, changed, followed))) == ["Current", "InProgress", "Current"]
    assert {c.observed_generation for c in followed.status.conditions} == {2}


# ---- what no operator has seen yet


@pytest.mark.parametrize("kind", ["terraformtasks", "agentpools"])
def test_what_was_just_created_is_in_progress(kind: str) -> None:
    """What has no conditions is Current for kstatus, so a task would be done before anybody has looked at it."""
    crd = yaml.safe_load((CRDS / f"{kind}.yaml").read_text())["spec"]
    schema = crd["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    created = an_object(crd["names"]["kind"], a_task(), schema.get("default", {}))
    assert readings([created]) == ["InProgress"]


# ---- pools


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Current"),
        ({"agents": (b.an_idle(),)}, "Current"),
        ({"pool": b.a_pool(is_deleting=True)}, "Terminating"),
        # Another one's end or another node is all that it takes.
        ({"refused": "pods is forbidden: exceeded quota", "refused_at": NOW}, "InProgress"),
        ({"agents": (b.a_view(waiting_reason="Unschedulable: 0/3 nodes"),)}, "InProgress"),
        # Nothing changes until somebody changes something.
        ({"has_image": False}, "Failed"),
        ({"refused_template": "spec.hostPID"}, "Failed"),
    ],
)
def test_a_pool_is_read_by_whether_agents_start_and_whether_waiting_helps(changes: Json, expected: str) -> None:
    snapshot = a_pool_snapshot(**{"pool": b.a_pool(min_idle=1), **changes})
    assert snapshot.pool is not None
    shown = pool_status(snapshot.pool, schedule(snapshot, NOW), None, NOW)
    assert readings([an_object("AgentPool", snapshot.pool, shown)]) == [expected]
