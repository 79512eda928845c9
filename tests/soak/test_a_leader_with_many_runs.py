"""The operator that leads is killed, and the next one asked to end, while many tasks run: all are adopted before long.

`--adopted` says how many (`make test`: 5, `make soak`: 15): as many agents have to fit on the nodes. It is asked to end
once, or once for each ten of them. Who leads is told by the Lease, when it decides by the first that is written of a
new task, and who has a run by both sides' logs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, SYSTEM, Installation
from tests.e2e.tasks import RunningTask, a_task, source, start, start_one
from tests.e2e.test_leaders import HANDED_OVER_WITHIN_S, TAKEN_OVER_WITHIN_S, log_until, pod_of, signal_leader
from tests.e2e.timeline import Sighting

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

DECIDED_WITHIN_S = 3.0
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
    epoch, killed = signal_leader(soak, signal.SIGKILL)
    fresh = start_one(
        soak, "fresh", source("greeting", text="never"), namespace=SOAK, poolRef={"name": "there-is-none"}
    )
    tasks[0].cancel()
    taken = soak.wait_for_take_over(epoch)
    fresh.until_phase("Queued")
    decided_at = fresh.history[1].at
    assert tasks[0].until_ended() == "Cancelled", tasks[0].story()
    adopted_at = _adopted_at(soak, taken, tasks, killed)
    assert tasks[0].end is not None
    say(
        f"leader, SIGKILL with {count} runs: another one led after {taken.at - killed:.1f} s, decided after"
        f" {decided_at - killed:.1f} s, and had them all after {adopted_at - killed:.1f} s; the cancel from in between"
        f" had ended after {tasks[0].end.at - killed:.1f} s; the machine stood still for"
        f" {soak.timeline.stalled_s(killed, adopted_at):.1f} s"
    )
    assert _since(soak, killed, taken.at) < TAKEN_OVER_WITHIN_S, (killed, taken.at)
    assert _since(soak, taken.at, decided_at) < DECIDED_WITHIN_S, (taken.at, decided_at)
    assert _since(soak, killed, adopted_at) < ADOPTED_WITHIN_S, (killed, adopted_at)
    fresh.cancel()
    assert fresh.until_ended() == "Cancelled", fresh.story()
    evidence.assert_never_ran(fresh)

    for _ in range(max(1, count // 10)):
        soak.wait_for_standby()
        epoch, sent = signal_leader(soak, signal.SIGTERM)
        taken = soak.wait_for_take_over(epoch)
        adopted_at = _adopted_at(soak, taken, tasks[1:], sent)
        say(
            f"leader, SIGTERM with {count - 1} runs: the next one led after {(taken.at - sent) * 1000:.0f} ms, and had"
            f" them all after {adopted_at - sent:.1f} s; the machine stood still for"
            f" {soak.timeline.stalled_s(sent, taken.at) * 1000:.0f} ms until it led"
        )
        assert _since(soak, sent, taken.at) < HANDED_OVER_WITHIN_S, (sent, taken.at)
        assert _since(soak, sent, adopted_at) < ADOPTED_WITHIN_S, (sent, adopted_at)

    assert all(task.end is None for task in tasks[1:])
    for task in tasks[1:]:
        task.cancel()
    for task in tasks:
        assert task.until_ended() == "Cancelled", task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        assert evidence.executions(task) == 1
        evidence.assert_over(task)
        assert len({s.status["runID"] for s in task.history if s.status.get("runID")}) == 1


def _since(installation: Installation, began: float, ended: float) -> float:
    """Seconds, without those in which the machine stood still."""
    return ended - began - installation.timeline.stalled_s(began, ended)


def _adopted_at(installation: Installation, taken: Sighting, tasks: Iterable[RunningTask], since: float) -> float:
    """When the last agent had let the new leader in, and had proven to it that it is the one of its claim."""
    leader = pod_of(taken)
    seen = installation.timeline.latest("pods", SYSTEM, leader)
    assert seen is not None
    moments = []
    for task in tasks:
        proven = f"agent {task.pod_name}: connected"
        moments.append(log_until(installation, leader, since, proven)[-1][0])
        let_in = f"operator at {seen.status['podIP']} connected"
        moments.append(log_until(installation, task.pod_name, since, let_in, namespace=task.namespace)[-1][0])
    return max(moments)
