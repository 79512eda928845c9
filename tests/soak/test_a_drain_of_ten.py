"""`kubectl drain` of a node with ten running applies: ended by the ladder, or waited for, as their pool says.

Slow: ten agents start on one node. `make test` tries one eviction of each kind, and leaves this to `make soak`.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, source, start_one
from tests.e2e.test_pools import a_pool

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone]

RUNNING = 10
WAITED_S = 20.0
"""kubectl asks for each eviction again after 5 s."""


def applying_on(installation: Installation, node: str, drain_policy: str) -> list[RunningTask]:
    name = installation.name(f"drained-{drain_policy.lower()}")
    there = {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}
    pool = a_pool(name, minIdle=0, maxAgents=RUNNING, drainPolicy=drain_policy, podTemplate=there)
    pool["metadata"]["namespace"] = SOAK
    installation.kubectl.create(pool)
    text = source("sleeping_provider", count="1", duration="300s")
    tasks = [
        start_one(installation, f"drained-{n}", text, namespace=SOAK, poolRef={"name": name}) for n in range(RUNNING)
    ]
    for task in tasks:
        task.until_phase("Applying", within_s=240)
        task.until_operation()
    return tasks


def end_of(task: RunningTask) -> tuple[str, str, str]:
    phase = task.until_ended()
    return phase, task.status["result"]["state"], task.status["result"]["lock"]


def test_a_drain_ends_each_run_by_the_ladder_and_leaks_no_lock(installation: Installation, worker: str) -> None:
    tasks = applying_on(installation, worker, "Ladder")
    installation.drain_node(worker)
    for task in tasks:
        assert end_of(task) == ("Cancelled", "Complete", "Released"), task.story()
        assert task.status["result"]["reason"] == "CancelledByPodTermination"
        evidence.assert_over(task)


def test_a_drain_waits_for_runs_whose_pool_wants_that_and_disturbs_none(
    installation: Installation, worker: str
) -> None:
    tasks = applying_on(installation, worker, "Wait")
    command = ("drain", worker, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
    with installation.kubectl.stream(*command) as draining:
        with pytest.raises(subprocess.TimeoutExpired):
            draining.wait(WAITED_S)
        for task in tasks:
            assert task.phase == "Applying", task.story()
            assert all(process.gone is None for process in task.processes if process.is_terraform("apply"))
            pod = installation.timeline.latest("pods", SOAK, task.pod_name)
            assert pod is not None
            assert "deletionTimestamp" not in pod.object["metadata"]
        for task in tasks:
            task.cancel()
        for task in tasks:
            assert end_of(task) == ("Cancelled", "Complete", "Released"), task.story()
            assert task.status["result"]["reason"] == "CancelledByUser"
            evidence.assert_over(task)
        assert draining.wait(120) == 0
