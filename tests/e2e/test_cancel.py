"""A cancel at each moment of a task's life, by the documented patch, and what is left afterwards: nothing."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.installation import NARROW, RUNS, Installation
from tests.e2e.tasks import CANCEL, a_task, source, start, start_one

pytestmark = pytest.mark.cluster

GONE_WITHIN_S = 8.0
"""From the patch to the last process, where the resource stops when it is asked to: tenths of a second, and what the
disk adds to the state's last write. The next rung would be climbed after 10 s at the earliest."""
FORCE = '{"spec":{"cancelMode":"Force"}}'


def test_a_task_that_waits_for_an_agent_is_cancelled_without_having_run(installation: Installation) -> None:
    busy = start_one(installation, "busy", source("sleeping_command", seconds="600"), namespace=NARROW)
    busy.until_child("sleep 600")
    waiting = start_one(installation, "waiting", source("greeting", text="never"), namespace=NARROW)
    waiting.until(lambda: "agent" in waiting.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    assert waiting.status["queue"]["position"] == 1
    waiting.until(lambda: installation.pool_status(NARROW)["busy"] == 1, 30, "the pool to say that its agent is busy")

    waiting.cancel()
    assert_cancelled(waiting)
    assert waiting.status["cancel"]["rung"] == "NotStarted"
    assert waiting.status["result"]["reason"] == "CancelledByUser"
    evidence.assert_never_ran(waiting)

    busy.cancel()
    assert_cancelled(busy)
    evidence.assert_over(busy)
    installation.wait_for_idle(NARROW, 1)


def test_a_task_that_waits_for_its_workspace_is_cancelled_without_having_run(installation: Installation) -> None:
    holder = start_one(installation, "holder", source("sleeping_command", seconds="600"))
    holder.until_child("sleep 600")
    waiting = start_one(installation, "behind", source("greeting", text="never"), workspace=holder.workspace)
    waiting.until(lambda: holder.name in waiting.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    waiting.cancel()
    assert_cancelled(waiting)
    assert (waiting.run_id, waiting.processes) == ("", [])

    holder.cancel()
    assert_cancelled(holder)
    evidence.assert_over(holder)


def test_a_task_that_is_created_cancelled_never_runs(installation: Installation) -> None:
    task = start_one(installation, "stillborn", source("greeting", text="never"), cancel=True)
    assert_cancelled(task)
    evidence.assert_never_ran(task)


def test_a_cancel_in_init_ends_git_and_the_children_of_git(installation: Installation, silent_host: str) -> None:
    text = source("hanging_module", host=silent_host)
    task = start_one(installation, "in-init", text, cancelGraceSeconds=5)
    task.until_terraform("init")
    task.until_child("remote-http")
    task.cancel()
    assert_cancelled(task)
    evidence.assert_steps(task, "init")
    evidence.assert_over(task)
    state = task.state()
    assert state is None or state["resources"] == []


def test_a_cancel_in_plan_leaves_the_lock_that_it_waited_for_to_its_holder(installation: Installation) -> None:
    applied = start_one(installation, "locked", source("greeting", text="before"))
    assert applied.until_ended() == "Succeeded", applied.story()
    before = applied.state()
    info = {"ID": "somebody-else", "Operation": "OperationTypeApply", "Who": "a person", "Version": "1.11.4"}
    held = {
        "metadata": {"annotations": {"app.terraform.io/lock-info": json.dumps(info)}},
        "spec": {"holderIdentity": "somebody-else"},
    }
    lease = f"lock-tfstate-default-{applied.workspace}-tf"
    installation.kubectl("--namespace", RUNS, "patch", "lease", lease, "--type=merge", "-p", json.dumps(held))

    task = start_one(installation, "in-plan", source("greeting", text="after"), workspace=applied.workspace)
    plan = task.until_terraform("plan")
    task.until_phase("Planning")
    # It tries to get the lock once a second from here on.
    task.until(lambda: installation.timeline.looked_at[plan.node] > plan.started + 1.5, 10, "it to wait for the lock")
    patched = task.cancel()
    assert_cancelled(task)
    evidence.assert_steps(task, "init", "plan")
    evidence.assert_over(task, lock_holder="somebody-else")
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()
    assert task.state() == before


def test_a_cancel_in_a_plan_that_can_not_be_interrupted_climbs_until_it_ends(
    installation: Installation, silent_host: str
) -> None:
    text = source("hanging_read", host=silent_host)
    task = start_one(installation, "deaf-plan", text, cancelGraceSeconds=1)
    task.until_terraform("plan")
    task.until_logged("data.terraform_remote_state.other: Refreshing")
    task.cancel()
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] in ("SecondInterrupt", "Kill")
    assert task.status["result"]["forced"] is True
    evidence.assert_steps(task, "init", "plan")
    evidence.assert_over(task)


def test_a_cancel_in_apply_stops_the_provider_when_it_is_asked(installation: Installation) -> None:
    task = start_one(installation, "in-apply", source("sleeping_provider", count="2", duration="300s"))
    task.until_operation()
    provider = task.until_child("terraform-provider-time")
    patched = task.cancel()
    assert_cancelled(task)
    assert provider.run_id == task.run_id, "the watcher did not know the provider by what it inherited"
    assert task.status["cancel"]["rung"] == "Interrupt"
    assert task.status["result"]["reason"] == "CancelledByUser"
    assert task.status["result"]["state"] == "Complete"
    assert task.status["result"]["lock"] == "Released"
    evidence.assert_over(task)
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()
    state = task.state()
    assert state is not None, "the state was not saved"


def test_a_cancel_sweeps_what_hides_from_signals_sessions_and_environments(installation: Installation) -> None:
    task = start_one(installation, "stubborn", source("stubborn_commands"))
    for number in range(1, 6):
        task.until_child(f"sleep 600.{number}")
    patched = task.cancel()
    assert_cancelled(task)
    hidden = [p for p in task.processes if not p.run_id]
    assert hidden, f"nothing has thrown its environment away, so this tried less than it says\n{task.story()}"
    evidence.assert_over(task)
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()


def test_a_second_cancel_changes_nothing(installation: Installation) -> None:
    task = start_one(installation, "twice", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    task.cancel()
    task.cancel()
    assert_cancelled(task)
    ended = task.status
    task.cancel()
    evidence.assert_over(task)
    assert task.status["cancel"]["rung"] == "Interrupt"
    assert task.status["result"] == ended["result"]
    assert task.phases[-1] == "Cancelled"


def test_a_cancel_after_the_end_leaves_a_success_as_it_is(installation: Installation) -> None:
    task = start_one(installation, "too-late", source("greeting", text="done"))
    assert task.until_ended() == "Succeeded", task.story()
    before = task.status
    task.cancel()
    generation = task.kubectl("get", "terraformtask", task.name, "--output=jsonpath={.metadata.generation}")
    task.until(lambda: task.status["observedGeneration"] == int(generation), 30, "the generation to be observed")
    assert task.phase == "Succeeded"
    assert {k: task.status[k] for k in ("result", "finishedAt", "runID")} == {
        k: before[k] for k in ("result", "finishedAt", "runID")
    }
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)


def test_force_begins_at_the_providers_and_says_what_was_under_way(installation: Installation) -> None:
    task = start_one(installation, "force", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    task.patch('{"spec":{"cancel":true,"cancelMode":"Force"}}')
    patched = time.time()
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "KillProviders"
    result = task.status["result"]
    assert (result["forced"], result["state"]) == (True, "Incomplete")
    assert (result["openAddresses"], result["openAddressCount"]) == (["time_sleep.wait[0]"], 1)
    evidence.assert_over(task)
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()


def test_a_graceful_cancel_of_a_hung_provider_can_be_hurried_to_force(installation: Installation) -> None:
    task = start_one(installation, "hung", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    provider = task.until_process(
        lambda p: "terraform-provider-time" in p.text and p.gone is None, "a provider that is alive"
    )
    about = next(p for p in installation.nodes.processes(run_id=task.run_id) if p["pid"] == provider.pid)
    assert installation.nodes.kill(about, signal.SIGSTOP)
    task.cancel()
    task.until(lambda: task.status.get("cancel", {}).get("rung") == "Interrupt", 30, "the interrupt")
    assert task.phase == "Cancelling"
    assert any(p.is_terraform("apply") and p.gone is None for p in task.processes), task.story()

    task.patch(FORCE)
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "KillProviders"
    assert task.status["result"]["lock"] == "Released"
    evidence.assert_over(task)


def test_a_graceful_cancel_of_a_hung_provider_climbs_when_its_grace_is_over(installation: Installation) -> None:
    text = source("sleeping_provider", count="1", duration="300s")
    task = start_one(installation, "climbs", text, cancelGraceSeconds=60)
    task.until_operation()
    for about in installation.nodes.processes(run_id=task.run_id):
        if "terraform-provider-time" in " ".join(about["command"]):
            assert installation.nodes.kill(about, signal.SIGSTOP)
    task.cancel()
    task.until(lambda: task.status.get("cancel", {}).get("rung") == "Interrupt", 30, "the interrupt")
    task.patch('{"spec":{"cancelGraceSeconds":1}}')
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "KillProviders"
    evidence.assert_over(task)


def test_many_are_cancelled_by_one_command(installation: Installation) -> None:
    text = source("sleeping_command", seconds="600")
    tasks = start(installation, *(a_task(installation.name("many"), text=text) for _ in range(3)))
    for task in tasks:
        task.until_child("sleep 600")
    names = [task.name for task in tasks]
    tasks[0].kubectl("patch", "terraformtask", *names, "--type", "merge", "-p", CANCEL)
    for task in tasks:
        assert_cancelled(task)
        evidence.assert_over(task)
