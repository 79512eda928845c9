"""What grows with the number of tasks, as an SVG: a panel for each, both axes logarithmic. Pure; called by `__main__`.

The dashed line through the last point is growth in proportion: who stays below it costs less for each task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PANEL_WIDTH, PANEL_HEIGHT, TOP, BOTTOM, SIDE = 225, 230, 48, 40, 28
_STYLE = """
    text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #59636e }
    .title { font-size: 13px; fill: #1f2328 }
    .ground { fill: #ffffff }
    .line { stroke: #0969da; stroke-width: 1.5; fill: none }
    .point { fill: #0969da }
    .proportion { stroke: #59636e; stroke-dasharray: 3 3; fill: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #9198a1 }
      .title { fill: #f0f6fc }
      .ground { fill: #0d1117 }
    }"""


@dataclass(frozen=True, slots=True)
class Curve:
    title: str
    points: Sequence[tuple[int, float]]
    """Tasks, and what it was with so many; all above 0."""


def svg(curves: Sequence[Curve]) -> str:
    width = PANEL_WIDTH * len(curves)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{PANEL_HEIGHT}"'
        f' viewBox="0 0 {width} {PANEL_HEIGHT}" role="img">',
        "  <title>What grows with the number of tasks</title>",
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="ground" width="{width}" height="{PANEL_HEIGHT}" rx="8"/>',
    ]
    for number, curve in enumerate(curves):
        lines += _panel(curve, number * PANEL_WIDTH)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(curve: Curve, left: int) -> Iterator[str]:
    yield f'  <text class="title" x="{left + SIDE}" y="24">{curve.title}</text>'
    points = [(tasks, value) for tasks, value in curve.points if value > 0]
    if not points:
        return
    decades = max(1.0, math.log10(points[-1][0] / points[0][0]))
    (last, most), floor = points[-1], min(value for _, value in points)
    # As many decades of what grows as of tasks, so that growth in proportion is the diagonal.
    top = math.log10(max(value for _, value in points))
    span = max(decades, top - math.log10(floor))

    def place(tasks: float, value: float) -> tuple[float, float]:
        x = left + SIDE + math.log10(tasks / points[0][0]) / decades * (PANEL_WIDTH - 2 * SIDE)
        return x, TOP + (top - math.log10(value)) / span * (PANEL_HEIGHT - TOP - BOTTOM)

    first = points[0][0]
    (x0, y0), (x1, y1) = place(first, most * first / last), place(last, most)
    if last > first and y0 <= PANEL_HEIGHT - BOTTOM + 1:
        yield f'  <path class="proportion" d="M{x0:.1f} {y0:.1f} L{x1:.1f} {y1:.1f}"/>'
    path = " L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
    yield f'  <path class="line" d="M{path}"/>'
    for tasks, value in points:
        x, y = place(tasks, value)
        yield f'  <circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        yield f'  <text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:.3g}</text>'
        yield f'  <text x="{x:.1f}" y="{PANEL_HEIGHT - 12}" text-anchor="middle">{tasks:,}</text>'
