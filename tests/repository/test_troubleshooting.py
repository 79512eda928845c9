"""docs/troubleshooting.md is where a reason is looked up: it has all that the code can write, and no other."""

from __future__ import annotations

import re

import pytest

from tests.repository import reasons
from tests.repository.reasons import ROOT

TEXT = (ROOT / "docs/troubleshooting.md").read_text()
TITLES = ("While it has not ended", "Once it has ended", "Conditions of a pool")


def rows(title: str) -> list[list[str]]:
    """The cells of each line of a section's table, without its head."""
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def words(cell: str) -> list[str]:
    """What stands as code and is one word in CamelCase."""
    return re.findall(r"`([A-Z][A-Za-z]+)`", cell)


def first_cells(title: str) -> list[str]:
    return [word for cells in rows(title) for word in words(cells[0])]


LOOKS = {cell[0].strip("*") for cell in rows("Where to look")}


def test_it_has_every_phase_of_a_task_once() -> None:
    assert sorted(first_cells("While it has not ended")) == sorted(reasons.UNDER_WAY)


def test_it_has_every_reason_of_an_end_once() -> None:
    assert sorted(first_cells("Once it has ended")) == sorted(reasons.of_ends())


def test_it_has_every_condition_of_a_task_with_its_reasons() -> None:
    written = reasons.of_task_conditions()
    told = {words(kind)[0]: set(words(said)) for kind, _, said in rows("Conditions of a task")}
    assert told.keys() == written.keys()
    for kind, those in written.items():
        of_all_ends = those == reasons.UNDER_WAY | reasons.of_ends()
        assert told[kind] == (set() if of_all_ends else those), kind


def test_it_has_every_condition_of_a_pool_and_every_reason_once() -> None:
    types, written = reasons.of_pool_conditions()
    assert {words(of)[0] for _, of, _ in rows("Conditions of a pool")} == types
    assert sorted(first_cells("Conditions of a pool")) == sorted(written)


@pytest.mark.parametrize("title", TITLES)
def test_each_line_says_where_to_look_and_what_to_do(title: str) -> None:
    for cells in rows(title):
        assert all(cells), cells
        named = re.findall(r"\*(\w+)\*", " ".join(cells))
        assert set(named) <= LOOKS, cells
        assert named or "`kubectl " in " ".join(cells) or "nothing is wrong" in cells[-1], cells


def test_what_pools_md_says_to_do_is_of_the_same_reasons() -> None:
    """It has those that are a problem; what it is linked for must be there."""
    pools = set(re.findall(r"^\| `([A-Z]\w+)` \|", (ROOT / "docs/pools.md").read_text(), re.MULTILINE))
    problems = {
        words(name)[0]
        for name, of, look in rows("Conditions of a pool")
        if "Ready" in words(of) and look != "nothing is wrong"
    }
    assert problems <= pools
