"""The rounds of random troubles are drawn as they are meant to be. Needs no cluster."""

from __future__ import annotations

from tests.soak.plan import OF_OPERATOR, OF_TASKS, Plan, Trouble, plan

NODES = ("first", "second")


def rounds(seed: int, count: int = 400) -> list[Plan]:
    return [plan(seed, n, pools=("terraform", "tofu"), nodes=NODES, may_freeze=NODES[1:]) for n in range(count)]


def test_a_seed_repeats_the_same_rounds_and_another_gives_others() -> None:
    assert rounds(7, 20) == rounds(7, 20)
    assert rounds(7, 20) != rounds(8, 20)


def test_every_trouble_comes_and_a_frozen_node_is_rare() -> None:
    steps = [step for round_ in rounds(1) for step in round_.steps]
    assert {step.trouble for step in steps} == {*OF_TASKS, *OF_OPERATOR, Trouble.DRAIN, Trouble.PAUSE}
    frozen = [step for step in steps if step.trouble is Trouble.PAUSE]
    assert len(frozen) < 400 / 8
    assert {step.node for step in frozen} == {"second"}
    assert all(step.lasts_s > 0 for step in frozen)
    assert {step.node for step in steps if step.trouble is Trouble.DRAIN} == set(NODES)


def test_a_workspace_is_used_by_one_engine() -> None:
    both = set()
    for round_ in rounds(2):
        pools = {(task.workspace, task.pool) for task in round_.tasks}
        assert len(pools) == len({workspace for workspace, _ in pools})
        both |= {pool for _, pool in pools}
    assert both == {"terraform", "tofu"}


def test_a_cluster_of_one_node_or_of_somebody_else_has_the_same_rounds_without_what_it_can_not_do() -> None:
    for whole in rounds(3, 100):
        lesser = plan(3, whole.number, pools=("terraform", "tofu"), nodes=NODES[:1], may_freeze=())
        assert lesser.tasks == whole.tasks
        assert lesser.steps == tuple(s for s in whole.steps if s.trouble not in (Trouble.PAUSE, Trouble.DRAIN))


def test_no_task_is_made_anew_by_two_at_once() -> None:
    for each in rounds(1):
        made_anew = [step.task for step in each.steps if step.trouble is Trouble.RECREATE]
        assert len(made_anew) == len(set(made_anew)), each
