"""What becomes of a run when its node is drained, frozen or cut off: the truth, told only once it is known.

On a node that has the run and not the operator that leads. `tests/soak/test_a_node_given_up.py` waits for what
Kubernetes itself makes of such a node, which takes longer.
"""

from __future__ import annotations

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, source, start_one

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

NOTICED_WITHIN_S = 60.0
"""The operator's heartbeat: a ping every 20 s, half of that for its answer; and a busy machine."""


def applying_on(installation: Installation, node: str, label: str) -> RunningTask:
    task = start_one(installation, label, source("sleeping_provider", count="1", duration="300s"), namespace=SOAK)
    task.until_operation()
    assert node_of(task) == node
    return task


def node_of(task: RunningTask) -> str:
    """Where its pod is or was."""
    return str(task.installation.timeline.history("pods", task.namespace, task.pod_name)[-1].object["spec"]["nodeName"])


def assert_nothing_is_decided(task: RunningTask) -> None:
    assert task.end is None, f"who knows that?\n{task.story()}"
    assert not any(claim.is_deleted for claim in evidence.claims_of(task)), task.story()


def test_a_drained_node_ends_its_run_by_the_ladder_and_the_next_one_starts_elsewhere(
    installation: Installation, worker: str
) -> None:
    first = applying_on(installation, worker, "drained")
    second = start_one(installation, "next", source("greeting", text="x"), namespace=SOAK, workspace=first.workspace)
    second.until(lambda: first.name in second.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")

    _move_idle_agents_away(installation, worker)
    installation.drain_node(worker)

    assert first.until_ended() == "Cancelled", first.story()
    assert first.status["result"]["reason"] == "CancelledByPodTermination"
    assert (first.status["result"]["state"], first.status["result"]["lock"]) == ("Complete", "Released")
    evidence.assert_over(first)
    assert second.until_ended() == "Succeeded", second.story()
    assert node_of(second) != worker
    evidence.assert_over(second)


def _move_idle_agents_away(installation: Installation, node: str) -> None:
    """Else the next task may get one there, in the moment before the drain comes to it."""
    installation.cordon_node(node)

    def is_elsewhere() -> bool:
        idle = installation.idle_agents(SOAK)
        there = [pod["metadata"]["name"] for pod in idle if pod["spec"]["nodeName"] == node]
        if there:
            installation.kubectl("--namespace", SOAK, "delete", "pods", *there, "--wait=false", "--ignore-not-found")
        return not there

    installation.timeline.until(is_elsewhere, 60, f"the idle agents to be elsewhere than on {node}")


def test_a_run_on_a_frozen_node_is_not_ended_before_it_is_and_its_cancel_is_carried_out(
    installation: Installation, worker: str
) -> None:
    task = applying_on(installation, worker, "frozen")

    installation.pause_node(worker)
    task.cancel()
    task.until(
        lambda: "waiting for the connection" in task.status["message"], NOTICED_WITHIN_S, "the silence to be noticed"
    )
    assert task.phase == "Cancelling"
    assert task.pod_name in task.status["message"]
    # It is noticed at once where the operator that led was frozen, too: whoever comes after it has no connection yet.
    looked_at = installation.timeline.looked_at
    frozen = looked_at[worker]
    installation.timeline.until(lambda: max(looked_at.values()) > frozen + 5, 30, "5 s without the frozen node")
    assert looked_at[worker] == frozen, "the node's processes went on"
    assert_nothing_is_decided(task)
    assert task.terraform("apply").gone is None

    installation.resume_node(worker)
    assert task.until_ended() == "Cancelled", task.story()
    assert task.status["result"]["lock"] == "Released"
    evidence.assert_over(task)


def test_a_run_whose_node_lost_its_power_ends_with_the_kubelets_word_and_its_lock_is_told(
    installation: Installation, worker: str
) -> None:
    task = applying_on(installation, worker, "no-power")

    installation.stop_node(worker)
    task.until(
        lambda: "waiting for the connection" in task.status["message"], NOTICED_WITHIN_S, "the silence to be noticed"
    )
    assert_nothing_is_decided(task)

    installation.start_node(worker)
    assert task.until_ended(within_s=180) == "Failed", task.story()
    assert task.status["result"]["reason"] == "AgentLost"
    assert (task.status["result"]["lock"], task.status["result"]["lockID"]) == ("Held", task.state_lock_holder())
    evidence.assert_told_by_kubelet_first(task)
    evidence.assert_over(task)
