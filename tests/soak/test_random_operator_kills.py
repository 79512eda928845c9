"""kill -9 of the operator that leads at random moments, with tasks that run, wait and are being cancelled.

None is lost, none is started twice, every cancel is carried out. `--operator-kills` says how many
(`make test`: 5, `make soak`: 50), `--seed` repeats them.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask, a_task, source, start
from tests.e2e.test_leaders import TAKEN_OVER_WITHIN_S
from tests.soak.random_tasks import spread

pytestmark = [pytest.mark.cluster, pytest.mark.alone]


@dataclass(frozen=True)
class Population:
    """What there is when the operator dies."""

    left_alone: RunningTask
    waiting: RunningTask
    """For the workspace of the one before."""
    cancelled: RunningTask
    hung: RunningTask
    """Its provider is stopped before the cancel, so that the cancel takes its time."""

    @property
    def all(self) -> tuple[RunningTask, ...]:
        return self.left_alone, self.waiting, self.cancelled, self.hung


def test_kills_of_the_operator_lose_nothing_and_start_nothing_twice(
    soak: Installation, seed: int, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    count: int = request.config.getoption("--operator-kills") or pytest.skip("--operator-kills 0")
    chance = random.Random(f"{seed}/kills")
    with_standby_s: list[float] = []
    without_standby_s: list[float] = []
    for number in range(count):
        population = _populate(soak, number)
        try:
            had_standby, took_s = _trouble(soak, population, chance, in_place=number % 2 == 0)
            (with_standby_s if had_standby else without_standby_s).append(took_s)
            assert not had_standby or took_s < TAKEN_OVER_WITHIN_S, f"taken over after {took_s:.3f} s"
            _judge(population)
        except AssertionError as problem:
            problem.add_note(f"kill {number} of {count}, --seed {seed}")
            raise
    say(f"operator killed: {count} times, with 4 tasks each; none lost, none started twice, every cancel carried out")
    for what, times_s in (("stood by", with_standby_s), ("was yet to start", without_standby_s)):
        if times_s:
            say(f"  from the kill to the take-over, where another one {what}: {spread(times_s)}")


def _populate(installation: Installation, number: int) -> Population:
    def counted(label: str, seconds: int, workspace: str = "") -> Json:
        name = installation.name(f"kill-{number}-{label}")
        text = source("counted", task=name, seconds=str(seconds))
        return a_task(name, namespace=SOAK, workspace=workspace or name, text=text)

    def sleeping(label: str, **spec: Any) -> Json:
        text = source("sleeping_provider", count="2", duration="300s")
        return a_task(installation.name(f"kill-{number}-{label}"), namespace=SOAK, text=text, **spec)

    alone = counted("alone", 6)
    # It waits for its workspace in the order of the alphabet, where both are of one second.
    waiting = counted("waiting", 1, workspace=alone["metadata"]["name"])
    return Population(
        *start(installation, alone, waiting, sleeping("cancelled"), sleeping("hung", cancelGraceSeconds=4))
    )


def _trouble(
    installation: Installation, population: Population, chance: random.Random, *, in_place: bool
) -> tuple[bool, float]:
    """Does everything at its random moment; whether another one stood by, and the seconds without an operator."""
    epoch = installation.epoch()
    killed_at, had_standby = 0.0, False

    def kill() -> None:
        nonlocal killed_at, had_standby
        had_standby = installation.standby() is not None
        assert installation.kill_operator(), "the operator was not running"
        killed_at = time.time()
        if not in_place:
            installation.replace_operator_pod()

    def cancel_hung() -> None:
        # One that is still starting is given up by terraform itself, and then nothing hangs.
        is_at_work = bool(population.hung.status.get("progress", {}).get("current"))
        for about in installation.nodes.processes(run_id=population.hung.run_id) if is_at_work else []:
            if "terraform-provider-time" in " ".join(about["command"]):
                installation.nodes.kill(about, signal.SIGSTOP)
        population.hung.cancel()

    began = time.monotonic()
    plan = sorted(
        [
            (chance.uniform(0, 6), "kill", kill),
            (chance.uniform(0, 6), "cancel", population.cancelled.cancel),
            (chance.uniform(1, 5), "cancel the hung one", cancel_hung),
        ],
        key=lambda step: step[0],
    )
    for moment_s, _, act in plan:
        time.sleep(max(0.0, began + moment_s - time.monotonic()))
        act()
    taken = installation.wait_for_take_over(epoch)
    return had_standby, taken.at - killed_at - installation.timeline.stalled_s(killed_at, taken.at)


def _judge(population: Population) -> None:
    for task in population.all:
        task.until_ended()
    for task in (population.left_alone, population.waiting):
        assert task.phase == "Succeeded", task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        assert evidence.executions(task) == 1, task.story()
    for task in (population.cancelled, population.hung):
        assert task.phase == "Cancelled", task.story()
        assert task.status["cancel"]["by"] == "User"
        verbs = evidence.steps(task)
        assert len(verbs) == len(set(verbs)), f"a step was started twice\n{task.story()}"
    for task in population.all:
        evidence.assert_over(task)
        assert len({s.status["runID"] for s in task.history if s.status.get("runID")}) <= 1, task.story()
    before, after = sorted((population.left_alone, population.waiting), key=evidence.first_start)
    assert min(p.first_seen for p in after.processes) > evidence.last_alive(before), before.story() + after.story()
