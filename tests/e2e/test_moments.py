"""Cancels at moments that last too short to be met by chance: the node holds a process still until they are over."""

from __future__ import annotations

import hashlib
import json
import signal
import ssl
import time

import pytest

from tests import engine
from tests.e2e import evidence
from tests.e2e.evidence import assert_cancelled
from tests.e2e.installation import NARROW, RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, a_task, counted, source, start, start_one

pytestmark = pytest.mark.cluster

_RUN_ID_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
NO_IMAGE = "registry.invalid/agent:is-not-there"


_SHOW_CERTIFICATE = 'import ssl; print(ssl.get_server_certificate(("localhost", 8443)), end="")'


def _fingerprint(installation: Installation, agent: Json) -> str:
    """Of the key of this agent, to which a claim holds it; without it nobody would know that key later."""
    at = ("--namespace", agent["metadata"]["namespace"], "exec", agent["metadata"]["name"])
    certificate = installation.kubectl(*at, "--", "python3", "-c", _SHOW_CERTIFICATE)
    return "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()


def claim_by_hand(installation: Installation, task: RunningTask, agent: Json) -> str:
    """What an operator leaves behind that is killed after the claim and before `Start`; the run ID."""
    digest = hashlib.sha256(task.name.encode()).digest()
    run_id = "0" + "".join(_RUN_ID_LETTERS[byte & 31] for byte in digest[:25])
    state = f"kubernetes/{task.namespace}/{task.workspace}-tf"
    about = {
        "task-namespace": task.namespace,
        "task-name": task.name,
        "task-uid": task.now["metadata"]["uid"],
        "pod-name": agent["metadata"]["name"],
        "pod-uid": agent["metadata"]["uid"],
        "container-id": agent["status"]["containerStatuses"][0]["containerID"],
        "fingerprint": _fingerprint(installation, agent),
        "state": state,
    }
    installation.kubectl.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "run-" + hashlib.sha256(state.encode()).hexdigest(),
                "namespace": SYSTEM,
                "labels": {"app.kubernetes.io/name": "terrahalt-claim"},
                "annotations": {f"terrahalt.dev/{key}": value for key, value in about.items()},
            },
            "spec": {"holderIdentity": run_id},
        }
    )
    return run_id


def test_a_cancel_before_the_agent_is_ready_ends_a_task_that_then_never_runs(installation: Installation) -> None:
    name = installation.name("unready")
    pool = {"minIdle": 0, "maxAgents": 1, "image": NO_IMAGE}
    installation.kubectl.create(
        {
            "apiVersion": "terrahalt.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": name, "namespace": RUNS},
            "spec": pool,
        }
    )
    task = start_one(installation, "unready", source("greeting", text="never"), poolRef={"name": name})
    installation.timeline.until(lambda: bool(installation.agent_pods(RUNS, name)), 30, "its agent to be created")
    task.until(lambda: task.status.get("queue", {}).get("position") == 1, 30, "it to wait")
    assert f"agent of pool {name}" in task.status["message"]
    task.cancel()
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "NotStarted"
    evidence.assert_never_ran(task)

    # The agent that comes up too late has nothing to do, and goes.
    image = json.dumps({"spec": {"image": installation.images.agent_test}})
    task.kubectl("patch", "agentpool", name, "--type=merge", "-p", image)
    installation.timeline.until(lambda: not installation.agent_pods(RUNS, name), 60, "its agent to go")
    evidence.assert_never_ran(task)
    task.kubectl("delete", "agentpool", name)


@pytest.mark.alone
def test_a_cancel_that_overtakes_its_run_leaves_a_tombstone_and_the_agent_is_as_fresh_as_before(
    installation: Installation,
) -> None:
    (agent,) = installation.idle_agents(NARROW)
    with installation.without_operator():
        task = start_one(installation, "tombstone", source("greeting", text="never"), namespace=NARROW)
        task.until(lambda: bool(task.history), 30, "it to be seen")
        run_id = claim_by_hand(installation, task, agent)
        task.cancel()
    assert_cancelled(task)
    assert (task.run_id, task.pod_uid) == (run_id, agent["metadata"]["uid"]), task.story()
    assert task.status["cancel"]["rung"] == "NotStarted"
    evidence.assert_steps(task)
    assert task.processes == []
    evidence.assert_claim_released(task)
    assert task.state() is None

    following = start_one(installation, "after", source("greeting", text="hello"), namespace=NARROW)
    assert following.until_ended() == "Succeeded", following.story()
    assert following.pod_uid == agent["metadata"]["uid"], "its agent was thrown away for a run that never came"
    evidence.assert_over(following)
    installation.wait_for_idle(NARROW, 1)


def test_a_cancel_that_arrives_together_with_its_run_lets_it_execute_nothing(installation: Installation) -> None:
    (pod,) = installation.idle_agents(NARROW)
    agent = installation.agent_process(pod["metadata"]["uid"])
    assert installation.nodes.kill(agent, signal.SIGSTOP)
    try:
        task = start_one(installation, "overtaken", source("greeting", text="never"), namespace=NARROW)
        task.until(lambda: bool(task.run_id), 30, "a run")
        task.cancel()
        task.until(lambda: "sentAt" in task.status.get("cancel", {}), 15, "the cancel to be sent")
        assert task.phase == "Cancelling", "that is said before the agent has said it"
    finally:
        assert installation.nodes.kill(agent, signal.SIGCONT)
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "NotStarted"
    evidence.assert_steps(task)
    assert task.processes == []
    assert task.state() is None
    evidence.assert_over(task)
    installation.wait_for_idle(NARROW, 1)


def start_trapped(installation: Installation, step: str, label: str, text: str) -> RunningTask:
    """Stopped when that step begins. Its pool has one agent, so the trap is there before the task is."""
    (agent,) = installation.idle_agents(NARROW)
    installation.nodes.stop_at_sight(agent["metadata"]["uid"], engine.NAME, step)
    return start_one(installation, label, text, namespace=NARROW)


def test_a_cancel_between_plan_and_apply_never_lets_the_apply_begin(installation: Installation) -> None:
    task = start_trapped(installation, "plan", "between", source("greeting", text="never"))
    plan = task.until_terraform("plan")
    agent = installation.agent_process(task.pod_uid)
    # The plan ends, and nobody is awake to begin the apply.
    assert installation.nodes.kill(agent, signal.SIGSTOP)
    try:
        task.signal(plan, signal.SIGCONT)
        task.until(lambda: plan.gone is not None, 60, "the end of the plan")
        task.cancel()
        task.until(lambda: "sentAt" in task.status.get("cancel", {}), 15, "the cancel to be sent")
    finally:
        assert installation.nodes.kill(agent, signal.SIGCONT)
    assert_cancelled(task)
    evidence.assert_steps(task, "init", "plan")
    evidence.assert_over(task)
    state = task.state()
    assert state is None or state["resources"] == []
    assert task.status["result"]["state"] == "Complete"


def test_a_cancel_in_the_first_moments_of_an_apply_leaves_none_of_its_twenty_resources(
    installation: Installation,
) -> None:
    text = source("sleeping_provider", count="20", duration="300s")
    task = start_trapped(installation, "apply", "first-moments", text)
    task.until_terraform("apply")
    task.cancel()
    # SIGINT would be lost now: terraform has no handler yet, and then would apply everything.
    assert_cancelled(task)
    assert task.status["cancel"]["rung"] == "Kill"
    result = task.status["result"]
    assert (result["state"], result["lock"], result.get("forced", False)) == ("Complete", "Released", False)
    assert task.status.get("progress", {}).get("done", 0) == 0
    state = task.state()
    assert state is None or state["resources"] == [], task.story()
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)


@pytest.mark.alone
def test_a_cancel_while_the_operator_is_away_is_carried_out_and_what_has_ended_keeps_its_result(
    installation: Installation,
) -> None:
    installation.wait_for_idle(RUNS, 2)
    running = start_one(installation, "away", source("sleeping_provider", count="1", duration="300s"))
    ending = counted(installation, "away-done")
    running.until_operation()
    ending.until_child("sleep 600")
    with installation.without_operator():
        running.cancel()
        ending.end_sleep()
        ending.until(lambda: all(p.gone for p in ending.processes), 60, "its run to end")
        ending.cancel()
        installation.timeline.looked_after(time.time() + 1)
        assert any(p.is_terraform("apply") and p.gone is None for p in running.processes), "who cancelled that?"
        assert (running.end, ending.end) == (None, None), "who wrote that?"
    assert_cancelled(running)
    evidence.assert_steps(running, "init", "plan", "apply")
    evidence.assert_over(running)

    assert ending.until_ended() == "Succeeded", ending.story()
    requested = ending.condition("CancelRequested")
    assert (requested["status"], requested["reason"]) == ("True", "TooLate")
    assert ending.status["result"]["exitCode"] == 0
    evidence.assert_steps(ending, "init", "plan", "apply")
    evidence.assert_over(ending)


def test_a_task_that_is_made_anew_under_the_name_of_one_that_is_wound_down_waits_for_it(
    installation: Installation,
) -> None:
    installation.wait_for_idle(RUNS, 2)
    first = start_one(installation, "again", source("sleeping_provider", count="1", duration="300s"))
    first.until_operation()
    frozen = first.freeze_providers()
    first.delete()
    first.until_phase("Cancelling")
    # Only by force: its finalizer would keep it until its run has ended.
    first.patch('{"metadata":{"finalizers":null}}')
    first.until_gone()
    assert first.end is None

    (second,) = start(installation, a_task(first.name, text=source("greeting", text="anew")))
    second.until(lambda: "held by task" in second.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    assert any(p.is_terraform("apply") and p.gone is None for p in first.processes), first.story()
    for provider in frozen:
        first.signal(provider, signal.SIGCONT)
    assert second.until_ended() == "Succeeded", second.story()
    assert second.run_id != first.run_id
    assert {s.status["runID"] for s in second.history if s.status.get("runID")} == {second.run_id}
    assert all("cancel" not in s.status for s in second.history), "it has the cancel of the first"
    evidence.assert_handed_over(first, second)
    assert all(p.gone is not None for p in first.processes), first.story()
    evidence.assert_steps(second, "init", "plan", "apply")
    evidence.assert_over(second)


def test_tasks_of_a_pool_that_comes_later_run_when_it_comes(installation: Installation) -> None:
    name = installation.name("later")
    kept = start_one(installation, "patient", source("greeting", text="x"), poolRef={"name": name})
    dropped = start_one(installation, "impatient", source("greeting", text="x"), poolRef={"name": name})
    kept.until(lambda: name in kept.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    dropped.until(lambda: name in dropped.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    dropped.cancel()
    assert_cancelled(dropped)
    installation.kubectl.create(
        {
            "apiVersion": "terrahalt.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": name, "namespace": RUNS},
            "spec": {"minIdle": 0, "maxAgents": 1},
        }
    )
    assert kept.until_ended() == "Succeeded", kept.story()
    evidence.assert_over(kept)
    evidence.assert_never_ran(dropped)
    kept.kubectl("delete", "agentpool", name)


def copy_of(task: RunningTask, installation: Installation) -> RunningTask:
    """As a backup has it: what `kubectl get -o yaml` printed, without what the API server would refuse, renamed."""
    copied = task.installation.kubectl.get("--namespace", task.namespace, "terraformtask", task.name)
    for key in ("resourceVersion", "uid", "creationTimestamp", "generation"):
        del copied["metadata"][key]
    copied["metadata"]["name"] = installation.name("copy")
    installation.kubectl.create(copied)
    return RunningTask(installation, task.namespace, copied["metadata"]["name"], task.workspace)


def assert_refused_as_copy(copy: RunningTask) -> None:
    evidence.assert_failed(copy, "RestoredCopy")
    assert copy.condition("Accepted")["status"] == "False"
    assert (copy.run_id, copy.processes, copy.status.get("agent")) == ("", [], None)


def test_a_copy_of_a_finished_task_that_was_restored_from_elsewhere_is_refused(installation: Installation) -> None:
    original = start_one(installation, "original", source("greeting", text="x"))
    assert original.until_ended() == "Succeeded", original.story()
    before = original.now
    copy = copy_of(original, installation)
    assert_refused_as_copy(copy)
    assert original.now["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    copy.delete()
    copy.until_gone(within_s=15)


def test_a_copy_of_a_running_task_is_refused_and_the_original_runs_on(installation: Installation) -> None:
    original = start_one(installation, "original", source("sleeping_command", seconds="5"))
    original.until_child("sleep 5")
    copy = copy_of(original, installation)
    assert_refused_as_copy(copy)
    copy.delete()
    copy.until_gone(within_s=15)
    assert original.until_ended() == "Succeeded", original.story()
    evidence.assert_steps(original, "init", "plan", "apply")
    evidence.assert_over(original)
