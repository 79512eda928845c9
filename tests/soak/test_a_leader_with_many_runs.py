"""kill -9 of the operator that leads while many tasks run: the next one has them all before long.

`--adopted` says how many (`make test`: 5, `make soak`: 15): as many agents have to fit on the nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask, a_task, source, start
from tests.e2e.test_leaders import TAKEN_OVER_WITHIN_S, log_of, pod_of

pytestmark = pytest.mark.cluster

ADOPTED_WITHIN_S = 10.0
STARTED_WITHIN_S = 300.0


def test_the_next_one_has_every_run_and_carries_out_a_cancel_that_came_in_between(
    soak: Installation, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    count: int = request.config.getoption("--adopted") or pytest.skip("--adopted 0")
    names = [soak.name(f"adopted-{number}") for number in range(count)]
    tasks = start(soak, *(a_task(n, namespace=SOAK, text=source("counted", task=n, seconds="900")) for n in names))
    for task in tasks:
        task.until_child("sleep 900", within_s=STARTED_WITHIN_S)
    soak.wait_for_standby()
    epoch, killed = soak.epoch(), time.time()
    assert soak.kill_operator(), "the operator was not running"
    tasks[0].cancel()
    taken = soak.wait_for_take_over(epoch)
    stalled_s = soak.timeline.stalled_s(killed, taken.at)
    assert taken.at - killed - stalled_s < TAKEN_OVER_WITHIN_S, (killed, taken.at, stalled_s)
    assert tasks[0].until_ended() == "Cancelled", tasks[0].story()

    pods = {task.pod_name for task in tasks}
    adopted = _adopted(soak, pod_of(taken), pods, killed)
    stalled_s = soak.timeline.stalled_s(killed, max(adopted.values()))
    last_s = max(adopted.values()) - killed
    assert last_s - stalled_s < ADOPTED_WITHIN_S, (killed, adopted, stalled_s)
    say(f"leader, SIGKILL with {count} runs: another one led after {taken.at - killed:.1f} s, and had them all")
    say(
        f"  after {last_s:.1f} s; the cancel from in between had ended {_ended(tasks[0]) - killed:.1f} s after the kill"
    )

    assert all(task.end is None for task in tasks[1:])
    for task in tasks[1:]:
        task.cancel()
    for task in tasks:
        assert task.until_ended() == "Cancelled", task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        assert evidence.executions(task) == 1
        evidence.assert_over(task)
        assert len({s.status["runID"] for s in task.history if s.status.get("runID")}) == 1


def _adopted(installation: Installation, leader: str, pods: set[str], since: float) -> dict[str, float]:
    """Agent pod -> when the one that leads says that it has proven to be the one of its claim."""
    found: dict[str, float] = {}
    for at, line in log_of(installation, leader):
        for pod in pods:
            if at > since and f"agent {pod}: connected" in line:
                found.setdefault(pod, at)
    assert set(found) == pods, f"never connected: {pods - set(found)}"
    return found


def _ended(task: RunningTask) -> float:
    assert task.end is not None
    return task.end.at
