"""What a part has to show: figures that must not be above a limit, and ratios that must not be below one.

Everything is measured and shown all the same; what was missed makes the bench fail. Pure; called by the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.figures import Part, percentile


@dataclass(frozen=True, slots=True)
class Limit:
    """Of a row, at a percentile, in the row's unit; 100: of its highest sample."""

    what: str
    percent: int
    at_most: float


@dataclass(frozen=True, slots=True)
class LeastRatio:
    what: str
    at_least: float


def judge(
    part: Part,
    rounds: int,
    limits: Sequence[Limit],
    least: Sequence[LeastRatio] = (),
    also_counted: Sequence[str] = (),
) -> None:
    """`rounds`: so many samples each limited row must have, and those that are only counted."""
    for ratio in least:
        value = next((found.value for found in part.ratios if found.what == ratio.what), None)
        _note(
            part, f"{ratio.what} has to be at least {ratio.at_least:g} x", value, is_met=(value or 0) >= ratio.at_least
        )
    for limit in limits:
        row = part.row(limit.what)
        found = percentile(row.samples, limit.percent) if row.samples else None
        at = f"at p{limit.percent}" if limit.percent < 100 else "each time"
        text = f"{limit.what} has to be at most {limit.at_most:g} {row.unit}".rstrip() + f" {at}"
        _note(part, text, found, is_met=found is not None and found <= limit.at_most)
    counted = dict.fromkeys((*also_counted, *(limit.what for limit in limits)))
    if few := [what for what in counted if len(part.row(what).samples) < rounds]:
        part.missed.append(f"fewer than {rounds} samples: {', '.join(few)}")


def _note(part: Part, text: str, found: float | None, *, is_met: bool) -> None:
    told = f"{text}, {'nothing was measured' if found is None else f'it was {found:.3g}'}"
    (part.met if is_met else part.missed).append(told)
