"""The simulator is not blind: it finds each deliberate bug, by the seed that is recorded or soon after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.__main__ import quietly
from tests.simulation.bugs import BUGS, Bug, found_by, found_by_story, planted
from tests.simulation.history import of_seed

SOON = 400
"""A change of the product changes what a seed leads to; most bugs are found by many."""


@pytest.fixture(autouse=True, scope="module")
def without_log_lines() -> Iterator[None]:
    with quietly():
        yield


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_deliberate_bug_is_found(bug: Bug) -> None:
    if bug.story:  # test_simulation plays it without the bug
        with planted(bug):
            assert found_by_story(bug), "its history does not lead there any more: find a seed, make simulate-bugs"
        return
    assert of_seed(bug.seed).violation == ""
    with planted(bug):
        found = any(found_by(bug, seed) for seed in range(bug.seed, bug.seed + SOON))
    assert found, "find its seed anew: make simulate-bugs"


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    assert len({bug.what for bug in BUGS}) == len(BUGS) >= 14
