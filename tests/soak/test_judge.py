"""The judge of random troubles lets nothing pass that was not done to a task. Needs no cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.seen import Seen
from tests.soak import judge
from tests.soak.chaos_plan import OF_AGENTS, OF_OPERATORS
from tests.soak.plan import Plan, PlannedTask, Step, Trouble
from tests.soak.random_tasks import Shape
from tests.soak.troubles import Life, Round

SHORT, ENDLESS = Shape("short", ""), Shape("command", "")
LEFT_ALONE = PlannedTask(SHORT, workspace=0, pool="default")
NEIGHBOUR = PlannedTask(SHORT, workspace=0, pool="default")
ELSEWHERE = PlannedTask(SHORT, workspace=1, pool="default")


def outcome(phase: str, *done: Step, shape: Shape = SHORT) -> None:
    """Of task 0, with task 1 on its workspace and task 2 on another. Raises AssertionError."""
    seen = Seen().status(1.0, "Applying").status(2.0, phase)
    planned = PlannedTask(shape, workspace=0, pool="default")
    life = Life(0, planned, "counter", seen.task)
    plan = Plan(0, (planned, NEIGHBOUR, ELSEWHERE), done)
    judge.judge_outcome(life, Round(seen.task.installation, plan, lives=[life], done=list(done)))


def test_what_was_left_alone_has_to_succeed() -> None:
    outcome("Succeeded")
    for phase in ("Failed", "Cancelled"):
        with pytest.raises(AssertionError, match=phase):
            outcome(phase)


@pytest.mark.parametrize("trouble", sorted(judge.ENDING, key=str), ids=lambda trouble: trouble.name)
def test_what_was_ended_is_cancelled_or_was_done_before_and_never_failed(trouble: Trouble) -> None:
    step = Step(1.0, trouble, task=0)
    outcome("Cancelled", step)
    outcome("Succeeded", step)
    for phase in ("Failed", "Succeeded"):
        with pytest.raises(AssertionError, match=phase):
            outcome(phase, step, shape=ENDLESS)


def test_what_was_killed_may_fail_and_so_may_what_came_after_it_on_its_workspace() -> None:
    for task in (0, 1, None):
        outcome("Failed", Step(1.0, Trouble.KILL_AGENT, task=task))
    with pytest.raises(AssertionError, match="Failed"):
        outcome("Failed", Step(1.0, Trouble.KILL_AGENT, task=2))


def test_the_operator_is_no_excuse() -> None:
    for trouble in (Trouble.KILL_OPERATOR, Trouble.REPLACE_OPERATOR):
        with pytest.raises(AssertionError, match="Failed"):
            outcome("Failed", Step(1.0, trouble))


def test_a_node_that_lost_its_power_is_an_excuse_for_those_who_were_there() -> None:
    for node, may_fail in (("off", True), ("another", False)):
        seen = Seen().status(1.0, "Applying").object(1.5, "pods", "ns", "agent", {"spec": {"nodeName": node}})
        seen.status(2.0, "Failed")
        life = Life(0, LEFT_ALONE, "counter", seen.task)
        done = [Step(1.0, Trouble.STOP, node="off")]
        round_ = Round(seen.task.installation, Plan(0, (LEFT_ALONE,), tuple(done)), lives=[life], done=done)
        if may_fail:
            judge.judge_outcome(life, round_)
        else:
            with pytest.raises(AssertionError, match="Failed"):
                judge.judge_outcome(life, round_)


def test_only_what_a_newer_task_of_its_workspace_superseded_may_make_way() -> None:
    def made_way(reason: str, newer: PlannedTask) -> None:
        seen = Seen().status(1.0, "Cancelled", result={"reason": reason})
        lives = [Life(0, LEFT_ALONE, "counter", seen.task), Life(1, newer, "counter", seen.other)]
        judge.judge_outcome(lives[0], Round(seen.task.installation, Plan(0, (LEFT_ALONE, newer), ()), lives=lives))

    supersede = (("supersede", "Queued"),)
    made_way("Superseded", replace(NEIGHBOUR, spec=supersede))
    for reason, newer in (
        ("CancelledByUser", replace(NEIGHBOUR, spec=supersede)),
        ("Superseded", NEIGHBOUR),
        ("Superseded", replace(ELSEWHERE, spec=supersede)),
    ):
        with pytest.raises(AssertionError, match="Cancelled"):
            made_way(reason, newer)


def test_only_an_agent_whose_node_was_frozen_or_has_just_started_may_not_know_of_its_lock() -> None:
    seen = Seen().status(1.0, "Failed").object(0.5, "pods", "ns", "agent", {"spec": {"nodeName": "frozen"}})
    life = Life(0, LEFT_ALONE, "counter", seen.task)

    def could_look(trouble: Trouble, node: str) -> bool:
        done = [Step(1.0, trouble, node=node, task=0 if trouble in OF_AGENTS else None)]
        plan = Plan(0, (LEFT_ALONE,), tuple(done))
        return judge.could_look(life, Round(seen.task.installation, plan, lives=[life], done=done))

    assert not could_look(Trouble.PAUSE, "frozen")
    assert not could_look(Trouble.STOP, "frozen")
    assert could_look(Trouble.PAUSE, "another")
    assert could_look(Trouble.DRAIN, "frozen")
    for trouble in judge.SHAKEN:
        assert not could_look(trouble, "")


def test_a_lock_that_an_earlier_run_may_have_left_is_not_the_next_ones() -> None:
    seen = Seen().claim(0).lock(0.1, "a-lock").status(1.0, "Failed", name="other", result={"lock": "Unknown"})
    seen.claim(1.1, "DELETED").status(2.0, "Failed", result={"lock": "Released"})
    lives = [Life(0, LEFT_ALONE, "counter", seen.task), Life(1, NEIGHBOUR, "counter", seen.other)]
    round_ = Round(seen.task.installation, Plan(0, (LEFT_ALONE, NEIGHBOUR), ()), lives=lives)
    assert judge.locks_left_before(lives[0], round_) == {"a-lock"}
    assert judge.locks_left_before(lives[1], round_) == set()


def test_every_trouble_is_an_excuse_or_none() -> None:
    assert not judge.KILLING & judge.ENDING
    harmless = {*OF_OPERATORS, Trouble.FREEZE_AGENT, Trouble.CUT_AGENT}
    assert set(Trouble) - judge.KILLING - judge.ENDING == harmless
