"""Agents over time, and how long each task waited for one, as an SVG. Pure; called by `test_a_pool_of_twenty`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.picture import Scale, picture

WIDTH, LEFT, RIGHT = 920, 56, 16
HEIGHT, PANEL, TOPS = 470, 160, (48, 262)
_TICKS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_STYLE = """
    .agents { stroke: #0969da; stroke-width: 1.5; fill: none }
    .busy { fill: #54aeff; fill-opacity: .4 }
    .wait { fill: #1a7f37; fill-opacity: .6 }"""


@dataclass(frozen=True)
class Drawn:
    """Times are seconds since the first task was there."""

    title: str
    max_agents: int
    agents: Sequence[tuple[float, int, int]]
    """From when on, how many there were, how many of them had a run."""
    waits: Sequence[tuple[float, float]]
    """When a task was given to an agent, how long it had waited."""


def svg(drawn: Drawn) -> str:
    end_s = max([1.0, *(at for at, *_ in drawn.agents), *(at for at, _ in drawn.waits)])
    highest = max([drawn.max_agents, *(agents for _, agents, _ in drawn.agents)])
    longest_s = max([1.0, *(wait for _, wait in drawn.waits)])
    x, agents_y, wait_y = Scale(LEFT, WIDTH - RIGHT, end_s), _down(TOPS[0], highest), _down(TOPS[1], longest_s)
    total = _steps([(at, count) for at, count, _ in drawn.agents], end_s, x, agents_y)
    busy = _steps([(at, count) for at, _, count in drawn.agents], end_s, x, agents_y)
    closed = f"{busy} V{agents_y(0):.1f} H{x(drawn.agents[0][0]):.1f} Z" if drawn.agents else ""
    lines = [
        *_panel(TOPS[0], "agents: all (line), with a run (area)", x, end_s, agents_y, highest),
        f'  <path class="busy" d="{closed}"/>',
        f'  <path class="agents" d="{total}"/>',
        *_panel(TOPS[1], "queue: how long a task had waited when it got its agent, s", x, end_s, wait_y, longest_s),
        *(f'  <circle class="wait" cx="{x(at):.1f}" cy="{wait_y(wait):.1f}" r="2"/>' for at, wait in drawn.waits),
        f'  <text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">s since the tasks were created</text>',
    ]
    return picture(drawn.title, WIDTH, HEIGHT, _STYLE, lines)


def _down(top: int, most: float) -> Scale:
    return Scale(top + PANEL, top, most)


def _steps(points: Sequence[tuple[float, int]], end_s: float, x: Scale, y: Scale) -> str:
    if not points:
        return ""
    path = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"
    path += "".join(f" H{x(at):.1f} V{y(count):.1f}" for at, count in points[1:])
    return f"{path} H{x(end_s):.1f}"


def _panel(top: int, title: str, x: Scale, end_s: float, y: Scale, most: float) -> Iterator[str]:
    yield f'  <text class="title" x="{LEFT}" y="{top - 12}">{title}</text>'
    for value in _ticks(most, at_most=5):
        yield f'  <path class="grid" d="M{LEFT} {y(value):.1f} H{WIDTH - RIGHT}"/>'
        yield f'  <text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>'
    for value in _ticks(end_s, at_most=12):
        yield f'  <text x="{x(value):.1f}" y="{top + PANEL + 18}" text-anchor="middle">{value}</text>'


def _ticks(most: float, *, at_most: int) -> range:
    """From 0 on, in round steps."""
    step = next((step for step in _TICKS if most / step <= at_most), _TICKS[-1])
    return range(0, int(most) + 1, step)
