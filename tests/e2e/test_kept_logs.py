"""What a run has printed is read by the plugin when its pod is gone, whatever ended the run."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests import cluster as test_cluster
from tests.e2e import evidence
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import RunningTask, source, start_one
from tests.e2e.test_pools import a_pool
from tests.plugin.program import Program

pytestmark = pytest.mark.cluster

LINES, SHOWN = 600, 200
SMALL = {
    "spec": {
        "containers": [{"name": "agent", "resources": {"limits": {"memory": "400Mi"}}}],
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}],
    }
}


def it_is_cancelled(task: RunningTask) -> None:
    task.cancel()
    evidence.assert_cancelled(task)
    assert "forced" not in task.status["result"]


def it_is_forced(task: RunningTask) -> None:
    task.patch('{"spec":{"cancel":true,"cancelMode":"Force"}}')
    evidence.assert_cancelled(task)
    assert task.status["result"]["forced"] is True


def the_kernel_kills_it_for_its_memory(task: RunningTask) -> None:
    # On cgroup v1 the kernel kills one process after the other, and not the agent first, which could tell of that.
    assert task.installation.nodes.kill(task.installation.agent_process(task.pod_uid), signal.SIGSTOP)
    task.end_sleep()
    evidence.assert_failed(task, "AgentLost")
    assert "OOMKilled" in task.status["message"]


WAYS = (it_is_cancelled, it_is_forced, the_kernel_kills_it_for_its_memory)


@pytest.mark.parametrize("end", WAYS, ids=lambda end: end.__name__)
def test_the_last_200_lines_of_a_run_are_read_after_its_pod_is_gone(
    end: Callable[[RunningTask], None], installation: Installation
) -> None:
    pool, options = "", dict[str, Any]()
    if end is the_kernel_kills_it_for_its_memory:
        pool = installation.name("small")
        installation.kubectl.create(a_pool(pool, minIdle=0, maxAgents=1, podTemplate=SMALL))
        options = {"poolRef": {"name": pool}}
    task = start_one(installation, "printing", source("printing", lines=str(LINES)), **options)
    task.until_child("sleep 600")
    # What it has printed is in the pod's log, and stays there; who still had it in memory would lose it.
    task.until_logged(f"line {LINES} of {LINES}")
    end(task)
    task.until_agent_terminated()
    printed = task.kubectl("logs", task.pod_name).splitlines()
    task.delete_pod()
    task.until(lambda: installation.timeline.latest("pods", RUNS, task.pod_name) is None, 60, "its pod to be gone")
    assert installation.kubectl.find("--namespace", RUNS, "pod", task.pod_name) is None

    plugin = Program(test_cluster.plugin(), installation.kubectl.environment, RUNS)
    kept = plugin("logs", task.name).splitlines()
    shown = plugin("logs", f"--tail={SHOWN}", task.name).splitlines()
    begin = printed.index(kept[0])
    assert kept == printed[begin : begin + len(kept)]
    # What its agent said after it had kept the log: how it ended, which is in the status.
    assert [line for line in printed[begin + len(kept) :] if not line.startswith("terrahalt: ")] == []
    assert shown == kept[-SHOWN:]
    # terraform tells the output of a command that failed once more, with the error.
    assert numbers(kept)[:LINES] == list(range(1, LINES + 1))
    assert numbers(shown) == list(range(LINES + 1 - len(numbers(shown)), LINES + 1))
    assert len(numbers(shown)) > SHOWN - 40, shown
    evidence.assert_nothing_outlived(task)
    if pool:
        installation.kubectl("--namespace", RUNS, "delete", "agentpool", pool)


def numbers(lines: list[str]) -> list[int]:
    """Of those that the run has printed."""
    found = (re.search(rf"line (\d+) of {LINES}$", line) for line in lines)
    return [int(match[1]) for match in found if match]
