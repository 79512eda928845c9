"""The rounds of chaos are drawn as they are meant to be. Needs no cluster."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.soak.chaos_plan import BLOCK, COSTLY, LASTS_S, OF_AGENTS, OF_OPERATORS, OF_PEOPLE, TROUBLED_S, plan
from tests.soak.plan import OF_API, Plan, Trouble

NODES = ("first", "second")
ROUNDS = 500


def rounds(seed: int, count: int = ROUNDS, *, since: int = 0) -> list[Plan]:
    numbers = range(since, since + count)
    return [plan(seed, n, pools=("terraform", "tofu"), nodes=NODES, may_freeze=NODES[1:]) for n in numbers]


def test_a_seed_repeats_the_same_rounds_wherever_it_begins_and_another_gives_others() -> None:
    assert rounds(7, 20, since=30) == rounds(7, 50)[30:]
    assert [each.tasks for each in rounds(7, 20)] != [each.tasks for each in rounds(8, 20)]


@pytest.mark.parametrize("seed", range(3))
def test_of_each_costly_fault_there_is_one_in_every_block_of_rounds(seed: int) -> None:
    orders = set()
    for since in range(0, ROUNDS, BLOCK):
        costly = [(s.trouble, p.number % BLOCK) for p in rounds(seed, BLOCK, since=since) for s in p.steps]
        costly = [each for each in costly if each[0] in COSTLY]
        assert sorted((trouble for trouble, _ in costly), key=str) == sorted(COSTLY, key=str)
        orders.add(tuple(costly))
    assert len(orders) > 1, "always at the same rounds"


def test_every_fault_that_there_is_comes_again_and_again() -> None:
    counts = Counter(step.trouble for each in rounds(1) for step in each.steps)
    assert set(counts) == set(Trouble) == {*OF_PEOPLE, *OF_AGENTS, *OF_OPERATORS, *COSTLY}
    assert min(counts.values()) >= 15, counts


def test_every_round_has_tasks_and_something_that_a_person_does_and_most_have_several_faults() -> None:
    several = 0
    for each in rounds(2):
        assert len(each.tasks) >= 3
        assert all(0 <= step.at_s <= TROUBLED_S for step in each.steps)
        several += len(each.steps) > 2
    assert several > ROUNDS * 0.8


def test_a_fault_with_a_target_has_one_and_one_that_is_undone_has_its_time() -> None:
    for step in (step for each in rounds(3) for step in each.steps):
        assert (step.task is not None) == (step.trouble in {*OF_PEOPLE, *OF_AGENTS}), step
        assert bool(step.node) == (step.trouble in COSTLY and step.trouble not in OF_API), step
        assert bool(step.lasts_s) == (step.trouble in LASTS_S), step
        assert bool(step.patience_s) == (step.trouble in OF_AGENTS), step
        assert step.trouble is Trouble.DRAIN or step.node in ("", "second"), step


def test_a_leader_is_frozen_for_shorter_and_for_longer_than_its_lease() -> None:
    frozen = [s.lasts_s for each in rounds(4) for s in each.steps if s.trouble is Trouble.FREEZE_OPERATOR]
    assert min(frozen) < 3
    assert max(frozen) > 6


def test_nothing_is_frozen_or_cut_off_on_a_node_that_stands_still() -> None:
    for each in rounds(5):
        faults = {step.trouble for step in each.steps}
        if faults & {Trouble.PAUSE, Trouble.STOP}:
            assert not (faults - {Trouble.PAUSE, Trouble.STOP}) & LASTS_S.keys(), each


def test_a_workspace_is_used_by_one_engine_and_a_task_that_needs_an_approval_has_its_own() -> None:
    manual = newer = 0
    for each in rounds(6):
        used = {(task.workspace, task.pool) for task in each.tasks}
        assert len(used) == len({workspace for workspace, _ in used})
        assert max(workspace for workspace, _ in used) < len(each.tasks)
        shared = Counter(task.workspace for task in each.tasks)
        assert all(shared[task.workspace] == 1 for task in each.tasks if task.needs_approval)
        manual += sum(task.needs_approval for task in each.tasks)
        # Of two of the same second none supersedes the other.
        newer += sum(task.supersedes and task.at_s > 1 for task in each.tasks)
    assert manual > ROUNDS / 10
    assert newer > ROUNDS / 10


def test_no_task_is_made_anew_by_two_at_once() -> None:
    for each in rounds(1):
        made_anew = [step.task for step in each.steps if step.trouble is Trouble.RECREATE]
        assert len(made_anew) == len(set(made_anew)), each
