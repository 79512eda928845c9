"""What the largest step has to show, and what growth may cost: what is missed fails the bench.

Pure; called by `__main__`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tests.bench.figures import Part, Row, percentile
from tests.bench.scale import measure, plain

GROWTH = 1.5
"""Beyond in proportion: so many times more than the tasks may memory or time grow from one step to the next."""


@dataclass(frozen=True, slots=True)
class Limit:
    what: str
    percent: float
    most: float


LIMITS = (
    Limit(measure.DECIDED, 100, 10.0),
    Limit(measure.RSS, 100, 250.0),
    Limit(measure.IDLE, 100, 2.0),
    Limit(measure.ONE_FRAME, 99, 100.0),
    Limit(measure.ALL_FRAMES, 95, 600.0),
    Limit(plain.WRITES, 100, 5.0),
    Limit(plain.REQUESTS, 100, 18.0),
)


def judge(part: Part) -> None:
    rows = {row.what: row for row in part.rows if row.samples}
    for limit in LIMITS:
        if (row := rows.get(limit.what)) is None:
            part.missed.append(f"{limit.what}: nothing was measured")
        elif (found := percentile(row.samples, limit.percent)) > limit.most:
            where = "" if limit.percent == 100 else f" at p{limit.percent:g}"
            most = f"{limit.most:g} {row.unit}".strip()
            part.missed.append(
                f"{limit.what} has to be at most {most}{where}, it was {found:,.3f}".rstrip("0").rstrip(".")
            )


def judge_growth(steps: list[tuple[int, Part]]) -> None:
    """Each step beside the one before; noted at the later one."""
    for (few, before), (many, after) in pairwise(steps):
        for what in (measure.RSS, measure.DECIDED, measure.CONNECTED, measure.IDLE):
            old, new = _row(before, what), _row(after, what)
            if old is None or new is None or old.median <= 0:
                continue
            times = new.median / old.median
            after.notes.append(f"{many / few:g} times the tasks, {times:.2g} times: {what}")
            if times > GROWTH * many / few:
                after.missed.append(f"{what} grew {times:.3g} times where the tasks grew {many / few:g} times")


def _row(part: Part, what: str) -> Row | None:
    return next((row for row in part.rows if row.what == what and row.samples), None)
