"""Whom a trouble hits: its own task, or with patience one that has what it is done to. Needs no cluster."""

from __future__ import annotations

from tests.e2e.seen import OTHER_RUN, Seen
from tests.soak.plan import Plan, PlannedTask, Step, Trouble
from tests.soak.random_tasks import Shape
from tests.soak.troubles import Life, Round

TASK = PlannedTask(Shape("provider", ""), workspace=0, pool="default")


def hit(seen: Seen, trouble: Trouble, *, patience_s: float = 0.01) -> int | None:
    """The number of whom a step for task 0 hits."""
    lives = [Life(0, TASK, "", seen.task), Life(1, TASK, "", seen.other)]
    round_ = Round(seen.task.installation, Plan(0, (TASK, TASK), ()), lives=lives)
    life = round_.victim(Step(1.0, trouble, task=0, patience_s=patience_s))
    return None if life is None else life.number


def test_without_patience_it_is_for_its_own_task_whatever_that_has() -> None:
    assert hit(Seen(), Trouble.KILL_AGENT, patience_s=0) == 0


def test_with_patience_it_is_for_who_has_an_agent_and_its_own_comes_first() -> None:
    assert hit(Seen(), Trouble.KILL_AGENT) is None
    assert hit(Seen().status(1, "Applying", name="other", run=OTHER_RUN), Trouble.KILL_AGENT) == 1
    both = Seen().status(1, "Applying", name="other", run=OTHER_RUN).status(1, "Applying")
    assert hit(both, Trouble.KILL_AGENT) == 0
    assert hit(both.status(2, "Succeeded"), Trouble.KILL_AGENT) == 1
    assert hit(both.status(2, "Succeeded", name="other", run=OTHER_RUN), Trouble.KILL_AGENT) is None


def test_a_process_that_is_to_be_killed_has_to_be_alive() -> None:
    seen = Seen().status(1, "Applying").status(1, "Applying", name="other", run=OTHER_RUN)
    seen.process(5, 1, 2, "/bin/terraform-provider-time_v1")
    assert hit(seen, Trouble.KILL_PROVIDER) is None
    line = {"pid": 6, "ticks": 7, "started": 0.0, "pod": "", "run": OTHER_RUN, "parent": 1}
    seen.told("began", 2, command=["/bin/terraform-provider-time_v1"], **line)
    assert hit(seen, Trouble.KILL_PROVIDER) == 1
    assert hit(seen, Trouble.KILL_TERRAFORM) is None
