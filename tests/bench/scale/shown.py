"""What of a bench gets into the docs: a table of how all grows, one of the largest step, and what was missed.

Pure; called by `__main__`.
"""

from __future__ import annotations

from typing import Any

from tests.bench.figures import Part, Row, percentile
from tests.bench.scale import measure
from tests.bench.scale.chart import Curve
from tests.bench.written import circumstances

Steps = list[tuple[int, Part]]
_GROWTH = (
    ("memory, MiB", measure.RSS, 50),
    ("start-up until the first decision, s", measure.DECIDED, 100),
    ("start-up until all agents are connected, s", measure.CONNECTED, 100),
    ("CPU, idle, % of a core", measure.IDLE, 50),
    ("one cancel, PATCH sent → at the agent, p50, ms", measure.ONE_FRAME, 50),
    ("the same, p99, ms", measure.ONE_FRAME, 99),
    ("all cancelled at once, PATCH sent → at the agent, p95, ms", measure.ALL_FRAMES, 95),
    ("API server alone, as many PATCHes at once: → seen by a watch, p95, ms", measure.FLOOR_SEEN, 95),
    ("next tasks started a second", measure.STARTS, 50),
)
_CURVES = (
    ("memory, MiB", measure.RSS, 50),
    ("first decision, s", measure.DECIDED, 100),
    ("CPU, idle, % of a core", measure.IDLE, 50),
    ("one cancel, p99, ms", measure.ONE_FRAME, 99),
)


def text(steps: Steps, found: dict[str, Any], chart: str) -> str:
    """`found`: what else was noted of the same bench; `chart`: the file's name."""
    _, largest = steps[-1]
    return "\n".join(
        [
            f"| tasks | {' | '.join(f'{tasks:,}' for tasks, _ in steps)} |",
            f"|---|{'---|' * len(steps)}",
            *(f"| {title} | {' | '.join(_at(part, what, p) for _, part in steps)} |" for title, what, p in _GROWTH),
            "",
            f"![What grows with the number of tasks]({chart})",
            "",
            f"With {steps[-1][0]:,} tasks:",
            "",
            "| | n | p50 | p95 | p99 | max | |",
            "|---|---|---|---|---|---|---|",
            *(_line(row) for row in largest.rows if row.samples),
            "",
            *(f"* {note}" for note in largest.notes),
            "",
            *(f"**Missed: {missed}.**\n" for missed in largest.missed),
            circumstances(found["machine"], found["command"], found["at"]),
            f"Kubernetes {found['cluster']['kubernetes']}, nodes: {len(found['cluster']['nodes'])}; load of the minute"
            f" before: {found['load_before']:.2f}.",
        ]
    )


def curves(steps: Steps) -> list[Curve]:
    found = []
    for title, what, percent in _CURVES:
        rows = ((tasks, _row(part, what)) for tasks, part in steps)
        found.append(Curve(title, [(tasks, percentile(row.samples, percent)) for tasks, row in rows if row]))
    return found


def _row(part: Part, what: str) -> Row | None:
    return next((row for row in part.rows if row.what == what and row.samples), None)


def _at(part: Part, what: str, percent: float) -> str:
    row = _row(part, what)
    return "" if row is None else _short(percentile(row.samples, percent))


def _line(row: Row) -> str:
    if len(row.samples) == 1:
        return f"| {row.what} | 1 | {_short(row.samples[0])} | | | | {row.unit} |"
    values = [_short(percentile(row.samples, p)) for p in (50, 95, 99, 100)]
    return f"| {row.what} | {len(row.samples)} | {' | '.join(values)} | {row.unit} |"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
