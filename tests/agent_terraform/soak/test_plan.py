"""A seed repeats its rounds, and the rounds of some seeds have all that may happen. Needs no engine."""

from __future__ import annotations

from itertools import chain

from terrahalt_protocol.messages import Action
from tests.agent_terraform.soak.plan import Trouble, plan

PLANS = [plan(1, number) for number in range(400)]
RUNS = list(chain.from_iterable(drawn.runs for drawn in PLANS))


def test_a_seed_repeats_its_rounds_whichever_is_drawn_first() -> None:
    assert plan(7, 3) == plan(7, 3)
    assert str(plan(7, 3)) != str(plan(7, 4))
    assert str(plan(7, 3)) != str(plan(8, 3))


def test_all_that_may_happen_is_drawn() -> None:
    assert {happening.trouble for run in RUNS for happening in run.happenings} == set(Trouble)
    assert {drawn.place for drawn in PLANS} == {"local", "http", "s3", "pg"}
    assert {run.action for run in RUNS} == set(Action)
    assert {"timeout_s", "no_output_timeout_s", "init_timeout_s", "lock_timeout_s"} <= set().union(
        *(run.limits for run in RUNS)
    )
    assert any(run.has_foreign_lock for run in RUNS)
    assert any(not run.frees_lock for run in RUNS)
    assert any(run.shape.ballast_kb for run in RUNS)


def test_most_runs_do_not_have_to_be_closed_and_most_are_not_told_to_fail() -> None:
    assert sum(run.closes_after_s == 30.0 for run in RUNS) > len(RUNS) / 2
    assert sum(not run.shape.may_fail for run in RUNS) > len(RUNS) / 2


def test_marks_of_commands_lie_where_the_round_wants_them() -> None:
    texts = [run.shape.files("/marks-are-here")["main.tf"] for run in RUNS if run.shape.commands]
    assert texts
    assert not [text for text in texts if "/marks-are-here" not in text and "exit 3" not in text]
