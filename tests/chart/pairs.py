"""A few choices of all options, in which any two levels of any two options meet at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

Choice = dict[str, int]
"""Option -> which of its levels."""


def pairwise(levels: Mapping[str, int]) -> list[Choice]:
    """Option -> how many levels it has. Greedy and always the same; the first choice has level 0 of all that it can."""
    names = list(levels)
    left = {(a, i, b, j) for a, b in combinations(names, 2) for i in range(levels[a]) for j in range(levels[b])}
    choices: list[Choice] = []
    while left:
        a, i, b, j = min(left)
        choice = {a: i, b: j}
        for name in names:
            if name not in choice:
                choice[name] = max(range(levels[name]), key=lambda level: (_met(left, choice, name, level), -level))
        left -= {(x, choice[x], y, choice[y]) for x, y in combinations(names, 2)}
        choices.append({name: choice[name] for name in names})
    return choices


def _met(left: set[tuple[str, int, str, int]], choice: Choice, name: str, level: int) -> int:
    """How many pairs that are still missing this would bring."""
    return sum((other, of, name, level) in left or (name, level, other, of) in left for other, of in choice.items())


def missing(choices: Sequence[Choice], levels: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
    return {
        (a, i, b, j)
        for a, b in combinations(levels, 2)
        for i in range(levels[a])
        for j in range(levels[b])
        if not any(choice[a] == i and choice[b] == j for choice in choices)
    }
