"""One run per workspace: when the next task starts, and what it never does before."""

from __future__ import annotations

import itertools

import pytest

from tests.e2e import evidence
from tests.e2e.evidence import assert_handed_over
from tests.e2e.installation import RUNS, Installation
from tests.e2e.tasks import RunningTask, counted, source, start_one

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

NEXT_WITHIN_S = 5.0
"""From the last process of a graceful end to the first of the next task, with an idle agent waiting: tenths of a second
where nothing is slow. If it missed what wakes it, a list would find it, up to a minute later."""


def assert_soon(first: RunningTask, second: RunningTask) -> None:
    took_s = assert_handed_over(first, second)
    began = evidence.first_start(second)
    took_s -= first.installation.timeline.stalled_s(began - took_s, began)
    assert took_s < NEXT_WITHIN_S, first.story() + second.story()


def waits_for(task: RunningTask, holder: RunningTask) -> None:
    task.until(lambda: holder.name in task.status.get("queue", {}).get("waitingFor", ""), 30, "it to wait")
    assert task.phase == "Queued"


def let_its_second_pass(task: RunningTask) -> None:
    """Creation times are whole seconds, and the queue goes by them."""
    task.until(lambda: bool(task.history), 30, "it to be seen")
    created = evidence.seconds(task.now["metadata"]["creationTimestamp"])
    task.installation.timeline.looked_after(created + 1)


def test_the_next_task_starts_once_a_cancelled_one_is_gone_and_never_before(installation: Installation) -> None:
    first = start_one(installation, "first", source("sleeping_provider", count="1", duration="300s"))
    first.until_operation()
    second = start_one(installation, "second", source("greeting", text="next"), workspace=first.workspace)
    waits_for(second, first)
    installation.wait_for_idle(RUNS, 1)
    first.cancel()
    assert first.until_ended() == "Cancelled", first.story()
    assert second.until_ended() == "Succeeded", second.story()
    evidence.assert_over(first)
    evidence.assert_over(second)
    assert_soon(first, second)


def test_the_next_task_starts_once_the_one_before_is_done(installation: Installation) -> None:
    first = counted(installation, "first")
    first.until_child("sleep 600")
    second = start_one(installation, "second", source("greeting", text="next"), workspace=first.workspace)
    waits_for(second, first)
    installation.wait_for_idle(RUNS, 1)
    first.end_sleep()
    assert first.until_ended() == "Succeeded", first.story()
    assert second.until_ended() == "Succeeded", second.story()
    evidence.assert_over(second)
    assert_soon(first, second)


def test_tasks_of_one_workspace_run_in_the_order_in_which_they_came(installation: Installation) -> None:
    holder = start_one(installation, "a-holder", source("sleeping_command", seconds="600"))
    holder.until_child("sleep 600")
    # Their names are against the order of the alphabet.
    waiting: list[RunningTask] = []
    for label in ("z", "m", "b"):
        text = source("greeting", text=label)
        waiting.append(start_one(installation, label, text, workspace=holder.workspace, action="Plan"))
        let_its_second_pass(waiting[-1])
    holder.cancel()
    for task in waiting:
        assert task.until_ended() == "Succeeded", task.story()
    order = [holder, *waiting]
    for before, after in itertools.pairwise(order):
        assert_handed_over(before, after)


def test_tasks_of_two_workspaces_run_at_the_same_time(installation: Installation) -> None:
    installation.wait_for_idle(RUNS, 2)
    tasks = [start_one(installation, "parallel", source("sleeping_command", seconds="600")) for _ in range(2)]
    for task in tasks:
        task.until_child("sleep 600")
    assert tasks[0].pod_uid != tasks[1].pod_uid
    for task in tasks:
        task.cancel()
    for task in tasks:
        assert task.until_ended() == "Cancelled", task.story()
        evidence.assert_over(task)
