"""Rows of milliseconds side by side, as an SVG: each sample a dot on one logarithmic scale, a line at the median.

Pure; called by `written`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tests.bench.figures import Row, short
from tests.picture import Scale, picture

WIDTH, LEFT, RIGHT = 920, 40, 40
TOP, LANE, BOTTOM = 48, 46, 32
_STYLE = """
    .sample { fill: #0969da; fill-opacity: .45 }
    .median { stroke: #1a7f37; stroke-width: 2 }"""


def svg(title: str, rows: Sequence[Row]) -> str:
    """What is not above 0 stands at the left edge."""
    shown = [row for row in rows if row.samples]
    positive = [sample for row in shown for sample in row.samples if sample > 0]
    first = math.floor(math.log10(min(positive, default=1.0)))
    decades = max(1, math.ceil(math.log10(max(positive, default=10.0))) - first)
    last = 10.0 ** (first + decades)
    across, height = Scale(LEFT, WIDTH - RIGHT, decades), TOP + LANE * len(shown) + BOTTOM

    def x(value: float) -> float:
        return across(max(0.0, math.log10(value) - first)) if value > 0 else across(0)

    def lines() -> Iterator[str]:
        yield f'  <text class="title" x="{LEFT}" y="28">{title}</text>'
        for value in [step * 10.0 ** (first + decade) for decade in range(decades) for step in (1, 2, 5)] + [last]:
            yield f'  <path class="grid" d="M{x(value):.1f} {TOP} V{height - BOTTOM}"/>'
            yield f'  <text x="{x(value):.1f}" y="{height - 12}" text-anchor="middle">{value:g} ms</text>'
        for number, row in enumerate(shown):
            middle = TOP + LANE * number + 30
            told = f"{row.what} (n {len(row.samples)}, p50 {short(row.median)} ms)"
            yield f'  <text x="{LEFT + 4}" y="{middle - 12}">{told}</text>'
            for sample in row.samples:
                yield f'  <circle class="sample" cx="{x(sample):.1f}" cy="{middle}" r="3.5"/>'
            at = x(row.median)
            yield f'  <path class="median" d="M{at:.1f} {middle - 7} V{middle + 7}"/>'

    return picture(title, WIDTH, height, _STYLE, lines())
