"""The formula of a pod's grace, the two ways round."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from terrahalt_protocol import budget


def test_the_default_grace_of_a_cancel_needs_a_pod_of_403_seconds() -> None:
    assert budget.pod_grace_s(budget.DEFAULT_CANCEL_GRACE_S) == 403


@pytest.mark.parametrize("grace_s", [budget.MIN_CANCEL_GRACE_S, 300, budget.MAX_CANCEL_GRACE_S])
def test_what_fits_into_a_pods_grace_is_what_it_was_made_for(grace_s: int) -> None:
    assert budget.cancel_grace_s(budget.pod_grace_s(grace_s)) == grace_s


def test_the_formula_that_people_read_is_the_one_that_is_computed() -> None:
    summands, _, whole = budget.formula(7).partition(" = ")
    assert "cancelGraceSeconds 7" in summands
    assert sum(map(int, re.findall(r"\d+", summands))) == int(whole) == budget.pod_grace_s(7)


def test_the_documentation_has_the_same_formula() -> None:
    text = (Path(__file__).parents[2] / "docs/timeouts.md").read_text()
    assert budget.formula(300) in " ".join(text.split())
