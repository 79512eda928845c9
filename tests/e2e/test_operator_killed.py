"""kill -9 of the operator while tasks run, wait and are being cancelled: nothing is lost, nothing runs twice.

The process of the one that leads is killed on its node; who stands by goes on. Kubernetes starts the dead one anew:
the first test leaves it the container, the others take the pod away as well, since a container that fails again and
again is started ever later.
"""

from __future__ import annotations

import signal

import pytest

from tests.e2e import evidence
from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.tasks import a_task, counted, source, start, start_one

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

ROLLED_OUT_WITHIN_S = 120


def kill_operator(installation: Installation, *, replace: bool = True) -> int:
    """The epoch that it had."""
    epoch = installation.epoch()
    assert installation.kill_operator(), "the operator was not running"
    if replace:
        installation.replace_operator_pod()
    return epoch


def test_a_run_goes_on_without_its_operator_and_is_adopted(installation: Installation) -> None:
    task = counted(installation, "adopted", 6)
    task.until_child("sleep 6")
    epoch = kill_operator(installation, replace=False)
    assert task.until_ended() == "Succeeded", task.story()
    task.until(lambda: installation.epoch() > epoch, 30, "who leads now to be told")
    evidence.assert_steps(task, "init", "plan", "apply")
    assert evidence.executions(task) == 1
    assert len({s.status["runID"] for s in task.history if s.status.get("runID")}) == 1
    evidence.assert_over(task)


def test_a_run_that_ends_while_there_is_no_operator_ends_with_its_own_result(installation: Installation) -> None:
    task = counted(installation, "unobserved")
    task.until_child("sleep 600")
    with installation.without_operator():
        task.end_sleep()
        installation.timeline.until(
            lambda: bool(task.processes) and all(p.gone for p in task.processes), 60, "the run to end"
        )
        assert task.end is None, "who wrote that?"
        queued = start_one(installation, "meanwhile", source("greeting", text="hello"))
    assert task.until_ended() == "Succeeded", task.story()
    assert evidence.executions(task) == 1
    evidence.assert_over(task)
    assert queued.until_ended() == "Succeeded", queued.story()
    evidence.assert_over(queued)


def test_a_cancel_that_was_under_way_is_carried_out(installation: Installation) -> None:
    text = source("sleeping_provider", count="1", duration="300s")
    task = start_one(installation, "mid-cancel", text, cancelGraceSeconds=60)
    task.until_terraform("apply")
    task.until(lambda: bool(task.status.get("progress", {}).get("current")), 30, "an operation under way")
    lives = installation.nodes.processes(run_id=task.run_id)
    stopped = [p for p in lives if "terraform-provider-time" in " ".join(p["command"])]
    assert stopped, task.story()
    for provider in stopped:
        assert installation.nodes.kill(provider, signal.SIGSTOP)
    task.cancel()
    task.until_phase("Cancelling")
    kill_operator(installation)
    for provider in stopped:
        assert installation.nodes.kill(provider, signal.SIGCONT)
    assert task.until_ended() == "Cancelled", task.story()
    assert task.status["cancel"]["by"] == "User"
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)


def test_a_cancel_that_is_asked_for_while_there_is_no_operator_is_carried_out(installation: Installation) -> None:
    text = source("sleeping_provider", count="1", duration="300s")
    running = start_one(installation, "unheard", text)
    running.until_terraform("apply")
    queued = start_one(installation, "unheard-too", source("greeting", text="never"), workspace=running.workspace)
    queued.until_phase("Queued")
    epoch = kill_operator(installation)
    running.cancel()
    queued.cancel()
    for task in (running, queued):
        assert task.until_ended() == "Cancelled", task.story()
        evidence.assert_nothing_outlived(task)
    running.until(lambda: installation.epoch() > epoch, 30, "who leads now to be told")
    evidence.assert_over(running)
    assert queued.processes == []


def test_tasks_that_waited_are_started_once_by_the_next_operator(installation: Installation) -> None:
    holder = counted(installation, "holder", 4)
    holder.until_child("sleep 4")
    name = installation.name("next")
    text = source("counted", task=name, seconds="1")
    (waiting,) = start(installation, a_task(name, text=text, workspace=holder.workspace))
    waiting.until_phase("Queued")
    kill_operator(installation)
    for task in (holder, waiting):
        assert task.until_ended() == "Succeeded", task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        evidence.assert_over(task)
    assert (evidence.executions(holder), evidence.executions(waiting)) == (1, 1)
    assert min(p.first_seen for p in waiting.processes) > evidence.last_alive(holder)
    installation.wait_for_idle(RUNS, 1)


def test_a_rollout_of_the_operator_neither_ends_nor_forgets_anything(installation: Installation) -> None:
    running = counted(installation, "rolled-over", 8)
    text = source("sleeping_provider", count="1", duration="300s")
    cancelled = start_one(installation, "rolled-cancel", text)
    running.until_child("sleep 8")
    cancelled.until_terraform("apply")
    epoch = installation.epoch()
    installation.kubectl("--namespace", SYSTEM, "rollout", "restart", "deployment/terrahalt-operator")
    cancelled.cancel()
    assert cancelled.until_ended() == "Cancelled", cancelled.story()
    assert running.until_ended() == "Succeeded", running.story()
    installation.wait_for_take_over(epoch)
    # The other one is replaced after that: the next test is to find two that stay.
    rolled_out = ("rollout", "status", "deployment/terrahalt-operator", f"--timeout={ROLLED_OUT_WITHIN_S}s")
    installation.kubectl("--namespace", SYSTEM, *rolled_out, within_s=ROLLED_OUT_WITHIN_S + 10)
    assert evidence.executions(running) == 1
    for task in (running, cancelled):
        evidence.assert_steps(task, "init", "plan", "apply")
        evidence.assert_over(task)
