"""Agents that are lost without a word: the end is written soon after the kubelet has told of it, and never before.

When the kubelet told, and when the end was written, is what one watch on a node saw; that nothing of the run was
alive by then, what is seen of the node's processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e import evidence
from tests.e2e.evidence import assert_failed
from tests.e2e.installation import Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, source, start_one

pytestmark = pytest.mark.cluster


def agent_of(task: RunningTask) -> Json:
    return task.installation.agent_process(task.pod_uid)


def its_process_is_killed(task: RunningTask) -> None:
    assert task.installation.nodes.kill(agent_of(task))


def all_of_its_container_is_killed(task: RunningTask) -> None:
    # The agent, terraform and its provider, which is what an OOM kill takes on cgroup v2.
    assert task.installation.nodes.kill_container(agent_of(task)) >= 3


def all_of_its_pod_is_killed(task: RunningTask) -> None:
    # The pause process, too.
    assert task.installation.nodes.kill_at_once(task.installation.nodes.processes(pod_uid=task.pod_uid)) >= 4


def its_pod_is_deleted_by_force(task: RunningTask) -> None:
    # So its run can't end, and report, in the two seconds that such a pod still has.
    task.freeze_providers()
    task.delete_pod("--force", "--grace-period=0")


def its_pod_is_evicted_while_it_hangs(task: RunningTask) -> None:
    assert task.installation.nodes.kill(agent_of(task), signal.SIGSTOP)
    task.evict(gracePeriodSeconds=2)


def the_runtime_of_its_pod_is_killed(task: RunningTask) -> None:
    runtime = task.installation.nodes.parent_of(agent_of(task))
    assert "containerd-shim" in runtime["program"], runtime
    assert task.installation.nodes.kill(runtime)


WAYS = (
    its_process_is_killed,
    all_of_its_container_is_killed,
    all_of_its_pod_is_killed,
    its_pod_is_deleted_by_force,
    its_pod_is_evicted_while_it_hangs,
    the_runtime_of_its_pod_is_killed,
)


@pytest.mark.parametrize("lose", WAYS, ids=lambda lose: lose.__name__)
def test_a_lost_agent_ends_its_run_soon_after_the_kubelets_word_and_never_before(
    lose: Callable[[RunningTask], None], installation: Installation, say: Callable[[str], None]
) -> None:
    task = start_one(installation, "lost", source("sleeping_provider", count="1", duration="300s"))
    task.until_operation()
    lose(task)
    assert_failed(task, "AgentLost")
    took_s = evidence.assert_told_by_kubelet_first(task)
    say(f"agent lost, {lose.__name__.replace('_', ' ')}: its run had ended {took_s:.2f} s after the kubelet's word")
    assert task.pod_name in task.status["message"]
    result = task.status["result"]
    assert (result["state"], result["lock"]) == ("Unknown", "Held")
    assert result["lockID"] == task.state_lock_holder() != ""
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)
    pod = installation.timeline.latest("pods", task.namespace, task.pod_name)
    if pod is not None and "deletionTimestamp" in pod.object["metadata"]:
        task.until(
            lambda: installation.timeline.latest("pods", task.namespace, task.pod_name) is None, 60, "its pod to go"
        )
