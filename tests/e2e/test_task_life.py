"""Who is next in the queue, who makes way for whom, who gives up waiting, and when an ended task goes."""

from __future__ import annotations

import itertools

import pytest

from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import RunningTask, source, start_one
from tests.e2e.test_queue import let_its_second_pass, waits_for

pytestmark = pytest.mark.cluster


def holding(installation: Installation, label: str) -> RunningTask:
    """It applies until it is cancelled."""
    task = start_one(installation, label, source("sleeping_command", seconds="600"))
    task.until_child("sleep 600")
    task.until_phase("Applying")
    let_its_second_pass(task)
    return task


def after(installation: Installation, holder: RunningTask, label: str, **spec: object) -> RunningTask:
    text = source("greeting", text=label)
    return start_one(installation, label, text, workspace=holder.workspace, **{"action": "Plan", **spec})


def assert_never_ran(task: RunningTask) -> None:
    """Of the state that it shares with others nothing can be said."""
    assert (task.run_id, task.status.get("agent"), task.processes) == ("", None, []), task.story()


def assert_spared(task: RunningTask) -> None:
    """Its apply went on until a person cancelled it."""
    assert task.phases[-1] == "Applying", task.story()
    assert task.terraform("apply").gone is None, task.story()
    task.cancel()
    assert_cancelled(task)
    evidence.assert_over(task)


def test_the_highest_priority_is_next_as_it_was_patched_last_and_none_is_changed_after_that(
    installation: Installation,
) -> None:
    holder = holding(installation, "busy")
    low = after(installation, holder, "low", priority=-1)
    let_its_second_pass(low)
    plain = after(installation, holder, "plain")
    high = after(installation, holder, "high")
    waits_for(high, holder)
    high.patch('{"spec":{"priority":10}}')
    holder.cancel()
    for task in (high, plain, low):
        assert task.until_ended() == "Succeeded", task.story()
    for first, second in itertools.pairwise([holder, high, plain, low]):
        evidence.assert_handed_over(first, second)
    patch = ["patch", "terraformtask", low.name, "--type", "merge", "-p", '{"spec":{"priority":2}}']
    refused = installation.kubectl.attempt("--namespace", low.namespace, *patch)
    assert refused.returncode != 0
    assert "this task has left it: leave it as it is" in refused.stderr


def test_a_task_that_waits_too_long_fails_without_a_process_and_the_next_one_runs(installation: Installation) -> None:
    holder = holding(installation, "slow")
    impatient = after(installation, holder, "impatient", queueTimeoutSeconds=5)
    patient = after(installation, holder, "patient", queueTimeoutSeconds=600)
    evidence.assert_failed(impatient, "QueueTimedOut")
    assert_never_ran(impatient)
    assert f"held by task {holder.name}; nothing ran" in impatient.status["message"]
    created = evidence.seconds(impatient.now["metadata"]["creationTimestamp"])
    assert 5.0 <= evidence.seconds(impatient.status["finishedAt"]) - created < 15.0
    holder.cancel()
    assert patient.until_ended() == "Succeeded", patient.story()


def test_of_the_tasks_that_wait_only_the_newest_is_left_and_the_apply_before_them_goes_on(
    installation: Installation,
) -> None:
    holder = holding(installation, "applying")
    older = [after(installation, holder, label) for label in ("first", "second")]
    for task in older:
        let_its_second_pass(task)
    newest = after(installation, holder, "newest", supersede="Planning")
    for task in older:
        assert_cancelled(task, by="Superseded")
        assert task.status["cancel"]["supersededBy"] == newest.name
        assert_never_ran(task)
    waits_for(newest, holder)
    assert_spared(holder)
    assert newest.until_ended() == "Succeeded", newest.story()
    evidence.assert_handed_over(holder, newest)


def test_a_plan_makes_way_for_a_newer_task_and_nothing_of_it_is_applied(
    installation: Installation, silent_host: str
) -> None:
    installation.wait_for_idle(RUNS, 2)
    older = start_one(installation, "older", source("hanging_read", host=silent_host), cancelGraceSeconds=1)
    older.until_terraform("plan")
    older.until_phase("Planning")
    let_its_second_pass(older)
    newer = after(installation, older, "newer", supersede="Planning")
    assert_cancelled(older, by="Superseded")
    assert older.status["result"]["reason"] == "Superseded"
    assert f"task {newer.name} takes its place" in older.status["message"]
    asked = next(s for s in older.history if s.status.get("cancel"))
    assert asked.status["phase"] == "Planning", "on record before its agent said that it ends"
    evidence.assert_steps(older, "init", "plan")
    assert newer.until_ended() == "Succeeded", newer.story()
    evidence.assert_handed_over(older, newer)
    evidence.assert_over(older)


def test_two_pools_wait_for_each_other_at_one_state(installation: Installation) -> None:
    name = installation.name("second-pool")
    spec = {"minIdle": 1, "maxAgents": 1}
    meta = {"name": name, "namespace": RUNS}
    installation.kubectl.create(
        {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "AgentPool", "metadata": meta, "spec": spec}
    )
    installation.wait_for_idle(RUNS, 1, pool=name)
    holder = holding(installation, "one-pool")
    other = after(installation, holder, "other-pool", poolRef={"name": name})
    waits_for(other, holder)
    holder.cancel()
    assert other.until_ended() == "Succeeded", other.story()
    evidence.assert_handed_over(holder, other)
    other.kubectl("delete", "agentpool", name)


def test_an_ended_task_is_deleted_after_its_time_and_its_state_stays(installation: Installation) -> None:
    task = start_one(installation, "short-lived", source("greeting", text="kept"), ttlSecondsAfterFinished=3)
    assert task.until_ended() == "Succeeded", task.story()
    task.until_gone(30)
    deleted = task.history[-1]
    assert deleted.at - evidence.seconds(deleted.status["finishedAt"]) >= 3.0
    state = task.state()
    assert state is not None
    assert state["outputs"]["greeting"]["value"] == "kept"
