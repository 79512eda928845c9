"""docs/security.md names the test of each thing that it promises: it has to be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text()
MUST_NOT = TEXT.partition("## What it must not reach")[2].partition("\n## ")[0]
ROWS = [line for line in MUST_NOT.splitlines() if line.startswith("| ") and "tried by" not in line]


def test_the_first_thing_it_says_is_what_no_setting_changes() -> None:
    first = TEXT.splitlines()[2]
    assert first.startswith("**Whoever may create a task in a namespace can read every Secret there")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_whatever_a_task_must_not_reach_is_tried_by_a_test_that_is_there(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
    assert named
    for file, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
