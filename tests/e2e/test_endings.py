"""Ends that nobody asked for by a cancel: failures, timeouts, deletions, agents that are taken away."""

from __future__ import annotations

import shlex

import pytest

from tests import engine
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled, assert_failed
from tests.e2e.installation import NARROW, Installation
from tests.e2e.tasks import source, start_one

pytestmark = pytest.mark.cluster


def test_a_failed_precondition_is_told_with_its_place(installation: Installation) -> None:
    task = start_one(installation, "precondition", source("failing_precondition"))
    assert_failed(task, "PlanFailed")
    assert "the subnet is larger than its network" in task.status["message"]
    assert "main.tf line" in task.status["message"]
    evidence.assert_steps(task, "init", "plan")
    evidence.assert_over(task)


def test_a_failed_command_is_told_and_what_was_done_before_it_is_in_the_state(installation: Installation) -> None:
    task = start_one(installation, "command", source("failing_command", seconds="0"))
    assert_failed(task, "ApplyFailed")
    assert "terraform_data.failing" in task.status["message"]
    assert "3" in task.status["message"]
    assert task.status["result"]["exitCode"] == 1
    state = task.state()
    assert state is not None
    saved = {r["name"]: r["instances"][0].get("status", "whole") for r in state["resources"]}
    assert saved == {"first": "whole", "failing": "tainted"}
    evidence.assert_over(task)


def test_text_that_is_not_terraform_fails_in_init_and_says_where(installation: Installation) -> None:
    task = start_one(installation, "broken", 'resource "terraform_data" {')
    assert_failed(task, "InitFailed")
    assert "main.tf" in task.status["message"]
    evidence.assert_steps(task, "init")
    evidence.assert_over(task)


def test_a_source_that_is_missing_is_named(installation: Installation) -> None:
    task = start_one(installation, "no-source", "", source={"configMapRef": {"name": "there-is-none"}})
    assert_failed(task, "SourceInvalid")
    assert "there-is-none" in task.status["message"]
    evidence.assert_steps(task)
    evidence.assert_over(task)


def test_a_secret_that_is_missing_is_named(installation: Installation) -> None:
    task = start_one(
        installation, "no-secret", source("greeting", text="x"), envFrom=[{"secretRef": {"name": "there-is-none"}}]
    )
    assert_failed(task, "EnvironmentInvalid")
    assert "there-is-none" in task.status["message"]
    evidence.assert_over(task)


def test_a_task_of_an_unknown_pool_waits_and_says_for_what(installation: Installation) -> None:
    task = start_one(installation, "no-pool", source("greeting", text="x"), poolRef={"name": "there-is-none"})
    task.until_phase("Queued")
    assert "there-is-none" in task.status["queue"]["waitingFor"]
    assert "create it" in task.status["message"]
    task.cancel()
    assert task.until_ended() == "Cancelled", task.story()
    evidence.assert_never_ran(task)


def test_a_timeout_climbs_the_same_ladder_and_ends_as_failed(installation: Installation) -> None:
    text = source("sleeping_provider", count="1", duration="300s")
    # Long enough for init, plan and the apply's first event on a busy machine; an apply that has had none yet is killed
    # at its gate instead (tests/agent/test_cancel.py).
    task = start_one(installation, "timeout", text, timeoutSeconds=20)
    assert_failed(task, "TimedOut")
    evidence.assert_steps(task, "init", "plan", "apply")
    assert task.status["cancel"]["by"] == "Timeout"
    assert task.status["cancel"]["rung"] == "Interrupt"
    ran_s = evidence.last_gone(task) - evidence.first_start(task)
    assert 15.0 < ran_s < 60.0, task.story()  # its sleep takes 300 s
    evidence.assert_over(task)


def test_a_task_that_is_deleted_while_it_runs_is_cancelled_first(installation: Installation) -> None:
    task = start_one(installation, "deleted", source("sleeping_provider", count="1", duration="300s"))
    task.until_terraform("apply")
    task.delete()
    task.until_gone()
    assert task.end is not None, f"it went without an end\n{task.story()}"
    assert task.end.status["phase"] == "Cancelled"
    assert task.end.status["result"]["reason"] == "CancelledByDeletion"
    assert task.end.status["cancel"]["by"] == "Deletion"
    evidence.assert_over(task)
    gone = task.history[-1]
    assert all(p.gone is not None and p.last_seen < gone.at for p in task.processes), task.story()


def test_a_task_that_is_deleted_in_the_queue_goes_at_once(installation: Installation) -> None:
    busy = start_one(installation, "busy", source("sleeping_command", seconds="600"), namespace=NARROW)
    busy.until_child("sleep 600")
    waiting = start_one(installation, "waiting", source("greeting", text="never"), namespace=NARROW)
    waiting.until_phase("Queued")
    waiting.delete()
    waiting.until_gone(within_s=15)
    evidence.assert_never_ran(waiting)

    busy.delete()
    busy.until_gone()
    evidence.assert_over(busy)
    installation.wait_for_idle(NARROW, 1)


def test_a_finished_task_is_deleted_and_its_state_stays(installation: Installation) -> None:
    task = start_one(installation, "finished", source("greeting", text="kept"))
    assert task.until_ended() == "Succeeded", task.story()
    task.delete()
    task.until_gone(within_s=15)
    state = task.state()
    assert state is not None
    assert state["outputs"]["greeting"]["value"] == "kept"


def test_an_agent_pod_that_is_deleted_ends_its_run_by_the_ladder_and_tells_the_truth(
    installation: Installation,
) -> None:
    task = start_one(installation, "pod-deleted", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    task.delete_pod()
    assert task.until_ended() == "Cancelled", task.story()
    assert task.status["result"]["reason"] == "CancelledByPodTermination"
    assert task.status["cancel"]["by"] == "PodTermination"
    assert task.status["result"]["lock"] == "Released"
    assert task.state() is not None
    evidence.assert_over(task)


def test_an_agent_pod_that_is_evicted_ends_its_run_by_the_ladder(installation: Installation) -> None:
    task = start_one(installation, "evicted", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    task.evict()
    assert_cancelled(task, by="PodTermination")
    assert task.status["result"]["reason"] == "CancelledByPodTermination"
    assert (task.status["result"]["state"], task.status["result"]["lock"]) == ("Complete", "Released")
    evidence.assert_over(task)


def test_the_lock_of_a_terraform_that_was_killed_is_released_by_its_agent(installation: Installation) -> None:
    task = start_one(installation, "killed", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    assert task.state_lock_holder()
    for about in installation.nodes.processes(run_id=task.run_id):
        if about["command"][:2] == [engine.NAME, "apply"]:
            assert installation.nodes.kill(about)
    assert_failed(task, "TerraformKilled")
    assert (task.status["result"]["state"], task.status["result"]["lock"]) == ("Incomplete", "Released")
    assert task.state_lock_holder() == ""
    evidence.assert_over(task)


def test_the_command_for_a_lock_that_was_left_behind_releases_it(installation: Installation) -> None:
    task = start_one(installation, "left-lock", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    assert installation.nodes.kill(installation.agent_process(task.pod_uid))
    assert_failed(task, "AgentLost")
    result = task.status["result"]
    assert (result["lock"], result["lockID"]) == ("Held", task.state_lock_holder())
    evidence.assert_over(task)

    words = shlex.split(result["lockCommand"])
    assert words[0] == "kubectl"
    released = installation.kubectl(*words[1:])
    assert "patched" in released
    assert task.state_lock_holder() == ""
    again = installation.kubectl.attempt(*words[1:])
    assert again.returncode != 0, "it takes the lock from whoever has it now"
