"""What a part of the bench hands over, and how it is shown: samples, ratios, notes.

Samples are kept whole, so that the JSON can be plotted later; percentiles are by nearest rank, so the p99 of
ten rounds is simply their maximum. Pure; called by every part and by `__main__`;
the soak takes its percentiles here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def percentile(samples: Sequence[float], percent: float) -> float:
    """By nearest rank; `samples` in any order, at least one."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing; a single sample where it was measured once."""

    what: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return percentile(self.samples, 50)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"what": self.what, "unit": self.unit, "n": len(self.samples)}
        if self.samples:
            found |= {f"p{p}": percentile(self.samples, p) for p in (50, 95, 99)}
            found |= {"min": min(self.samples), "max": max(self.samples)}
        return found | {"samples": list(self.samples)}


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times one median is another of the same run."""

    what: str
    value: float


@dataclass(slots=True)
class Part:
    name: str
    about: str
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    """What it had to show, and has; filled by `limits`."""
    missed: list[str] = field(default_factory=list)
    """What it had to show and did not: then the bench fails."""
    took_s: float = 0.0

    def add(self, what: str, unit: str, samples: Iterable[float]) -> Row:
        row = Row(what, unit, tuple(samples))
        self.rows.append(row)
        return row

    def row(self, what: str) -> Row:
        """Without a sample where there is none of that name."""
        return next((row for row in self.rows if row.what == what), Row(what, "", ()))

    def compare(self, what: str, of: Row, to: Row) -> None:
        """Adds `of` / `to`; nothing where one of them has no sample, or can't be divided by."""
        if of.samples and to.samples and to.median > 0:
            self.ratios.append(Ratio(what, of.median / to.median))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "took_s": round(self.took_s, 1),
            "rows": [row.as_json() for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "notes": self.notes,
            "met": self.met,
            "missed": self.missed,
        }

    def as_text(self) -> str:
        width = max((len(row.what) for row in self.rows), default=0)
        lines = [f"== {self.name}: {self.about}  ({self.took_s:.0f} s)"]
        lines.append(f"   {'':<{width}} {'n':>6} {'p50':>10} {'p95':>10} {'p99':>10} {'max':>10}")
        lines += [f"   {row.what:<{width}} {_numbers(row)} {row.unit}" for row in self.rows]
        lines += [f"   ratio  {ratio.what}: {short(ratio.value)} x" for ratio in self.ratios]
        lines += [f"   note   {note}" for note in self.notes]
        lines += [f"   met    {what}" for what in self.met]
        lines += [f"   MISSED {what}" for what in self.missed]
        return "\n".join(lines)


def _numbers(row: Row) -> str:
    if not row.samples:
        return f"{0:>6} {'-':>10} {'-':>10} {'-':>10} {'-':>10}"
    return f"{len(row.samples):>6} " + " ".join(f"{number:>10}" for number in percentiles(row))


def percentiles(row: Row) -> list[str]:
    """p50, p95, p99 and the maximum of one that has samples; of a single sample only itself."""
    if len(row.samples) == 1:
        return [short(row.samples[0]), "", "", ""]
    return [short(percentile(row.samples, p)) for p in (50, 95, 99)] + [short(max(row.samples))]


def short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
