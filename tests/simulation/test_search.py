"""The bounded search: it comes to ends, finds deliberate bugs by short stories, takes two states for one rightly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.__main__ import quietly
from tests.simulation.bugs import BUGS, planted
from tests.simulation.fingerprint import fingerprint
from tests.simulation.history import story
from tests.simulation.narrow import Narrow
from tests.simulation.search import Bounds, Found, Search, main


@pytest.fixture(autouse=True, scope="module")
def without_log_lines() -> Iterator[None]:
    with quietly():
        yield


def found_with(what: str, bounds: Bounds, *, first_will_do: bool = False) -> Found:
    with planted(next(bug for bug in BUGS if bug.what == what)):
        return Search(bounds).run(first_will_do=first_will_do)


def test_without_a_fault_both_tasks_succeed() -> None:
    found = Search(Bounds(faults=0)).run()
    assert (found.violation, found.ends, found.cut) == (None, 1, 0)
    narrow = Narrow()
    while choices := [choice for choice in narrow.choices() if not choice.faults]:
        getattr(narrow, choices[0].name)(choices[0].pick)
    assert [task["status"]["phase"] for task in narrow.tasks] == ["Succeeded", "Succeeded"]


@pytest.mark.parametrize(
    ("what", "moves"),
    [
        ("no claim is made", 6),
        ("the agent tells the end before the sweep", 16),
        ("a claim is released before its task's end is on record", 17),
        ("a report is acknowledged before the end is on record", 16),
    ],
)
def test_a_deliberate_bug_that_needs_no_fault_is_found_by_its_shortest_story(what: str, moves: int) -> None:
    found = found_with(what, Bounds(faults=0))
    assert found.violation is not None
    assert len(found.violation.moves) <= moves
    with planted(next(bug for bug in BUGS if bug.what == what)):
        assert story(found.violation, of=Narrow)[-1] == found.violation.violation


def test_what_is_cut_off_is_counted() -> None:
    found = Search(Bounds(faults=0, depth=5)).run()
    assert (found.depth, found.cut, found.ends) == (5, 1, 0)


def test_several_processes_find_what_one_does() -> None:
    bounds = Bounds(faults=0, depth=12, in_every_order=True)
    one, two = Search(bounds).run(), Search(bounds).run(jobs=2)
    assert (one.states, one.depth, one.cut) == (two.states, two.depth, two.cut)
    assert one.states > 100


def test_two_writes_in_either_order_lead_to_one_state_and_two_others_do_not() -> None:
    def after(*picks: int) -> bytes:
        narrow = Narrow()
        for pick in picks:
            assert narrow.a_write_is_carried_out(pick)
        return fingerprint(narrow)

    begin = Narrow()
    assert [key[0] for _, key in begin._writes()] == ["pool", "task", "task"]
    assert after(1, 2) == after(2, 1)
    assert len({after(), after(1), after(2), after(1, 2)}) == 4


def test_a_violation_is_told_as_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    with planted(next(bug for bug in BUGS if bug.what == "no claim is made")):
        assert main(["--faults", "0", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "operator 1: its request to create pods is carried out" in said
    assert "begins without a claim" in said
    assert "a violation" in said.splitlines()[-1]
