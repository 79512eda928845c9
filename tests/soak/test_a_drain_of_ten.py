"""`kubectl drain` of a node with ten running applies: ended by the ladder, or waited for, as their pool says.

Slow: ten agents start on one node. `--drained` says how many (`make soak`: 10, 0: none). `make test` tries one
eviction of each kind. Judged by the processes on the node, the pods' histories and the states' locks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, a_task, source, start
from tests.e2e.test_pools import a_pool
from tests.e2e.timeline import Process, Sighting
from tests.soak.random_tasks import spread

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone]

STARTED_WITHIN_S = 300.0
LASTS = "1200s"
"""The first of them has to be at it still when the last one has started, and the drain has waited."""
WAITED_S = 20.0
"""kubectl asks for each eviction again after 5 s."""
KILLED = 128 + 9


@pytest.fixture
def drained(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--drained") or pytest.skip("--drained 0"))


def applying_on(installation: Installation, node: str, drain_policy: str, count: int) -> list[RunningTask]:
    name = installation.name(f"drained-{drain_policy.lower()}")
    there = {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}
    pool = a_pool(name, minIdle=0, maxAgents=count, drainPolicy=drain_policy, podTemplate=there)
    pool["metadata"]["namespace"] = SOAK
    installation.kubectl.create(pool)
    text = source("sleeping_provider", count="1", duration=LASTS)
    names = [installation.name(f"drained-{number}") for number in range(count)]
    tasks = start(
        installation,
        *(a_task(n, namespace=SOAK, text=text, poolRef={"name": name}, timeoutSeconds=1800) for n in names),
    )
    for task in tasks:
        task.until_phase("Applying", within_s=STARTED_WITHIN_S)
        task.until_operation()
    for task in tasks:
        assert {process.node for process in alive(task)} == {node}, task.story()
    return tasks


def alive(task: RunningTask) -> list[Process]:
    """Of its apply, and of the provider that is at work for it."""
    living = [process for process in task.processes if process.gone is None]
    found = [p for p in living if p.is_terraform("apply") or "terraform-provider-" in p.text]
    assert any(p.is_terraform("apply") for p in found), task.story()
    assert any("terraform-provider-" in p.text for p in found), task.story()
    return found


def assert_ended(task: RunningTask, reason: str) -> None:
    """By a SIGINT, with its true result; nothing lives, and nobody has its lock."""
    assert task.until_ended() == "Cancelled", task.story()
    result = task.status["result"]
    assert (result["reason"], result["state"], result["lock"]) == (reason, "Complete", "Released"), task.story()
    assert task.status["cancel"]["rung"] == "Interrupt", task.story()
    assert not result.get("forced"), task.story()
    evidence.assert_over(task)
    assert task.state_lock_holder() == "", task.story()


def asked_to_go(task: RunningTask) -> Sighting | None:
    """Its pod, in the first version that says so."""
    pods = task.installation.timeline.history("pods", SOAK, task.pod_name)
    return next((pod for pod in pods if pod.is_deleted or "deletionTimestamp" in pod.object["metadata"]), None)


def assert_ended_inside_its_grace(task: RunningTask) -> float:
    """And its agent was not killed by the kubelet. How many seconds its last process lived on."""
    asked = asked_to_go(task)
    assert asked is not None, task.story()
    took_s = evidence.last_gone(task) - asked.at
    assert took_s < asked.object["metadata"]["deletionGracePeriodSeconds"], task.story()
    pods = task.installation.timeline.history("pods", SOAK, task.pod_name)
    states = [c.get("state", {}) for pod in pods for c in pod.status.get("containerStatuses", ())]
    codes = {state["terminated"]["exitCode"] for state in states if "terminated" in state}
    assert codes, f"the kubelet has not told how {task.pod_name} ended"
    assert KILLED not in codes, task.story()
    return took_s


def test_a_drain_ends_each_run_by_the_ladder_inside_its_grace_and_leaks_no_lock(
    room: Installation, worker: str, drained: int, say: Callable[[str], None]
) -> None:
    tasks = applying_on(room, worker, "Ladder", drained)
    assert not any(asked_to_go(task) for task in tasks)
    room.drain_node(worker)
    for task in tasks:
        assert_ended(task, "CancelledByPodTermination")
    took_s = [assert_ended_inside_its_grace(task) for task in tasks]
    say(f"drain of {drained} applies, by the ladder: their last processes were gone after {spread(took_s)}")


def test_a_drain_waits_for_runs_whose_pool_wants_that_and_disturbs_none(
    room: Installation, worker: str, drained: int
) -> None:
    tasks = applying_on(room, worker, "Wait", drained)
    before = {task.name: {(p.pid, p.ticks) for p in alive(task)} for task in tasks}
    idle = {pod["metadata"]["name"] for pod in room.idle_agents(SOAK) if pod["spec"]["nodeName"] == worker}
    assert idle, "then nobody sees that the drain is at work"
    command = ("drain", worker, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
    with room.kubectl.stream(*command) as draining:
        try:
            room.timeline.until(
                lambda: not idle & {pod["metadata"]["name"] for pod in room.agent_pods(SOAK, "default")},
                60,
                f"{idle} to be evicted",
            )
            with pytest.raises(subprocess.TimeoutExpired):
                draining.wait(WAITED_S)
            for task in tasks:
                assert task.phase == "Applying", task.story()
                assert before[task.name] <= {(p.pid, p.ticks) for p in alive(task)}, task.story()
                assert asked_to_go(task) is None, task.story()
            for task in tasks:
                task.cancel()
            for task in tasks:
                assert_ended(task, "CancelledByUser")
            assert draining.wait(120) == 0
        finally:
            draining.kill()
