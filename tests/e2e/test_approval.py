"""A person between plan and apply: the plan waits without an agent, and that plan is applied, or nothing.

Approved by the command that the task's own message gives.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from tests.e2e import evidence
from tests.e2e.installation import Installation
from tests.e2e.kubectl import Json, KubectlFailed
from tests.e2e.tasks import PlanRun, RunningTask, a_task, plan_run, source, start, start_one
from tests.e2e.test_operator_killed import kill_operator

pytestmark = pytest.mark.cluster


def manual(installation: Installation, label: str, *, workspace: str = "", **spec: Any) -> RunningTask:
    """An apply that would leave a Secret behind each time."""
    name = installation.name(label)
    text = source("counted", task=name, seconds="1")
    (task,) = start(installation, a_task(name, text=text, workspace=workspace, approval="Manual", **spec))
    return task


def waiting(installation: Installation, label: str, *, workspace: str = "", **spec: Any) -> RunningTask:
    task = manual(installation, label, workspace=workspace, **spec)
    task.until_phase("AwaitingApproval")
    return task


def approve(task: RunningTask) -> None:
    """As its message says."""
    found = re.search(r"`kubectl ([^`]*patch [^`]*)`", task.status["message"])
    assert found, task.story()
    task.installation.kubectl(*shlex.split(found[1]))


def kept_plan(task: RunningTask) -> Json | None:
    secret = f"terrahalt-plan-{task.status['plan']['runID'].lower()}"
    return task.installation.kubectl.find("--namespace", task.namespace, "secret", secret)


def planned(run: PlanRun) -> list[str]:
    """Its steps; what shows the plan to people is none, and may be too quick to be seen."""
    return [verb for verb in evidence.steps(run) if verb != "show"]


def assert_planned_only(task: RunningTask) -> None:
    """Its run is over, its agent used up, its workspace free, and nothing was applied."""
    run = plan_run(task)
    assert planned(run) == ["init", "plan"], task.story()
    evidence.assert_agent_used_up(run)
    assert all(p.gone for p in run.processes), task.story()
    task.until(
        lambda: any(s.is_deleted for s in evidence.claims_of(run)), evidence.RELEASED_WITHIN_S, "its claim to be gone"
    )
    assert evidence.executions(task) == 0


def assert_applied_once(task: RunningTask) -> None:
    assert task.until_ended() == "Succeeded", task.story()
    evidence.assert_steps(task, "init", "apply")
    assert planned(plan_run(task)) == ["init", "plan"], task.story()
    assert evidence.executions(task) == 1
    evidence.assert_over(task)


def test_a_plan_waits_without_an_agent_and_that_very_plan_is_applied_by_another(installation: Installation) -> None:
    task = waiting(installation, "approved")
    assert_planned_only(task)
    plan = task.status["plan"]
    assert (plan["add"], plan["change"], plan["destroy"]) == (1, 0, 0)
    assert not task.pod_name
    assert task.condition("PlanReady")["status"] == "True"
    assert task.condition("Finished")["status"] == "False"
    secret = kept_plan(task)
    assert secret is not None
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == [task.uid]
    approve(task)
    assert_applied_once(task)
    first = plan_run(task)
    assert (task.run_id, task.pod_uid) != (first.run_id, first.pod_uid)
    assert task.status["plan"] == plan
    assert task.phases[-1] == "Succeeded"
    assert "Applying" not in task.phases[: task.phases.index("AwaitingApproval")]


def test_a_plan_that_waits_blocks_nobody_and_is_not_applied_to_a_state_that_has_changed(
    installation: Installation,
) -> None:
    task = waiting(installation, "stale")
    other = start_one(installation, "meanwhile", source("greeting", text="hello"), workspace=task.workspace)
    assert other.until_ended() == "Succeeded", other.story()
    before = task.state()
    approve(task)
    evidence.assert_failed(task, "PlanExpired")
    assert "Saved plan is stale" in task.status["message"]
    assert task.state() == before
    assert evidence.executions(task) == 0
    evidence.assert_steps(task, "init", "apply")
    evidence.assert_over(task)


def test_a_cancel_ends_a_task_that_waits_at_once_and_its_plan_goes_with_it(installation: Installation) -> None:
    task = waiting(installation, "unapproved")
    assert_planned_only(task)
    assert kept_plan(task) is not None
    task.cancel()
    assert task.until_ended(10) == "Cancelled", task.story()
    assert task.status["result"]["reason"] == "CancelledByUser"
    assert evidence.executions(task) == 0
    task.delete()
    task.until_gone()
    task.until(lambda: kept_plan(task) is None, 60, "the plan's Secret to be collected")


def test_a_deletion_of_a_task_that_waits_does_not_wait(installation: Installation) -> None:
    task = waiting(installation, "deleted")
    task.delete()
    task.until_gone(10)
    assert evidence.executions(task) == 0
    assert [p for p in plan_run(task).processes if p.is_terraform("apply")] == []


def test_a_plan_that_nobody_approves_is_given_up(installation: Installation) -> None:
    task = waiting(installation, "forgotten", approvalTimeoutSeconds=2)
    ready = evidence.seconds(task.status["plan"]["readyAt"])
    evidence.assert_failed(task, "ApprovalTimedOut")
    assert 2 <= evidence.seconds(task.status["finishedAt"]) - ready < 10
    assert_planned_only(task)


def test_another_digest_is_refused_and_says_which_one_is_right(installation: Installation) -> None:
    task = manual(installation, "wrong-digest")
    wrong = json.dumps({"spec": {"approvedPlanDigest": "sha256:" + "0" * 64}})
    for _ in range(2):  # before there is a plan, and then
        with pytest.raises(KubectlFailed, match=r"set it to status\.plan\.digest"):
            task.patch(wrong)
        task.until_phase("AwaitingApproval")
    approve(task)
    for patch in (wrong, '{"spec":{"approvedPlanDigest":null}}'):
        with pytest.raises(KubectlFailed, match="approvedPlanDigest"):
            task.patch(patch)
    assert_applied_once(task)


@pytest.mark.alone
def test_an_operator_that_is_killed_around_the_approval_applies_it_once(installation: Installation) -> None:
    task = manual(installation, "killed-between")
    task.until_terraform("plan")
    kill_operator(installation)
    task.until_phase("AwaitingApproval", within_s=evidence.REPLACED_WITHIN_S)
    assert_planned_only(task)
    with installation.without_operator():
        approve(task)
        assert evidence.executions(task) == 0
    task.until_terraform("apply", within_s=evidence.REPLACED_WITHIN_S)
    kill_operator(installation)
    assert_applied_once(task)
