"""What the charts of the docs share: their look in light and in dark, their frame, a scale.

Pure; called by `soak.pool_chart` and `bench.dots`.
"""

from __future__ import annotations

from collections.abc import Iterable

_STYLE = """
    text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #59636e }
    .title { font-size: 14px; fill: #1f2328 }
    .ground { fill: #ffffff }
    .grid { stroke: #d1d9e0; fill: none }"""
_DARK = """
    @media (prefers-color-scheme: dark) {
      text { fill: #9198a1 }
      .title { fill: #f0f6fc }
      .ground { fill: #0d1117 }
      .grid { stroke: #3d444d }
    }"""


def picture(title: str, width: int, height: int, style: str, lines: Iterable[str]) -> str:
    """An SVG; `style`: the classes of its own."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            ' role="img">',
            f"  <title>{title}</title>",
            f"  <style>{_STYLE}{style}{_DARK}\n  </style>",
            f'  <rect class="ground" width="{width}" height="{height}" rx="8"/>',
            *lines,
            "</svg>\n",
        ]
    )


class Scale:
    """A value from 0 to `most`, as a place between two others."""

    def __init__(self, begin: float, end: float, most: float) -> None:
        self._begin, self._per_unit = begin, (end - begin) / most

    def __call__(self, value: float) -> float:
        return self._begin + value * self._per_unit
