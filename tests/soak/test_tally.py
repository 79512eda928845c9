"""The table of a long trial counts what was done, and not what was only planned. Needs no cluster."""

from __future__ import annotations

import pytest

from tests.e2e.seen import Seen
from tests.soak.plan import Plan, PlannedTask, Step, Trouble
from tests.soak.random_tasks import Shape
from tests.soak.tally import Tally
from tests.soak.troubles import Life, Round

TASK = PlannedTask(Shape("short", ""), workspace=0, pool="default")
EARLY, LATE = Step(1.0, Trouble.CANCEL, task=0), Step(2.0, Trouble.CANCEL, task=0)
CUT = Step(1.5, Trouble.CUT_AGENT, task=0, lasts_s=1.0)


def test_a_round_is_a_line_and_what_was_missed_is_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen().status(1.0, "Cancelled")
    plan = Plan(7, (TASK,), (EARLY, CUT, LATE))
    round_ = Round(seen.task.installation, plan, lives=[Life(0, TASK, "counter", seen.task)], done=[EARLY, LATE])
    tally = Tally(seed=3, first=7)
    tally.note(round_, 2.0, 9.0, is_broken=True)
    assert capsys.readouterr().out == "7: 9.0 s after 2.0 s; CANCEL 2 -> Cancelled\n"
    lines = "\n".join(tally.lines())
    assert "seed 3: 1 rounds from 7 on, 1 of them broken [7]" in lines
    assert "    2 times (and   0 with nothing to do it to): cancel\n" in lines
    assert "    0 times (and   1 with nothing to do it to): cut its pod off from all others\n" in lines
