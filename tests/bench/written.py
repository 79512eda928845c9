"""How measured results get into the docs: between two marks, so that what people wrote around them stays.

Pure but for `write`; called by `__main__` and by `tests/soak/test_a_pool_of_twenty.py`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import dots, machine
from tests.bench.figures import Part, Row, percentiles, short


def page(name: str) -> Path:
    """For `--write`: told before anything is measured that there is no such page. Raises ArgumentTypeError."""
    path = Path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{name} does not exist; results go into a page, such as docs/benchmarks.md")
    return path


def replaced(text: str, mark: str, new: str) -> str:
    """The text with `new` between its lines `<!-- MARK -->` and `<!-- /MARK -->`. Raises ValueError without them."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    found = re.fullmatch(f"(.*{re.escape(begin)}).*({re.escape(end)}.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"there is no place for {mark}: the lines {begin.strip()} and {end} are needed")
    return f"{found[1]}{new.strip()}\n{found[2]}"


def circumstances(facts: dict[str, Any], command: str, at: str) -> str:
    """Of a result: without them it can't be compared with anything."""
    return f"Measured {at[:10]} by `{command}` on {', '.join(machine.described(facts).splitlines())}."


def section(part: Part, found: dict[str, Any], picture: str = "") -> str:
    """All that the part has shown. `found`: what else was noted of the same bench; `picture`: its file, or empty."""
    cluster = found["cluster"]
    return "\n".join(
        [
            f"| {part.name} | n | p50 | p95 | p99 | max |",
            "|---|---|---|---|---|---|",
            *(_line(row) for row in part.rows if row.samples),
            "",
            *([f"![The samples of this run]({picture})", ""] if picture else []),
            *(f"* {ratio.what}: {short(ratio.value)} times" for ratio in part.ratios),
            *(f"* Met: {what}" for what in part.met),
            *(f"* **Missed: {what}**" for what in part.missed),
            *(f"* {note[:1].upper()}{note[1:]}" for note in part.notes),
            "",
            circumstances(found["machine"], found["command"], found["at"]),
            f"Kubernetes {cluster['kubernetes']}, {cluster['runtime']}, nodes: {len(cluster['nodes'])}; load of the"
            f" minute before: {found['load_before']:.2f}.",
        ]
    )


def write(into: Path, part: Part, found: dict[str, Any], drawn: Sequence[str]) -> None:
    """Into its place in the page; the rows that are `drawn` into a picture beside it."""
    picture = f"bench-{part.name}.svg" if drawn else ""
    if picture:
        title = f"{part.name}: each sample of one run, and the median"
        (into.parent / picture).write_text(dots.svg(title, [part.row(what) for what in drawn]), encoding="utf-8")
    text = replaced(into.read_text(encoding="utf-8"), part.name, section(part, found, picture))
    into.write_text(text, encoding="utf-8")


def _line(row: Row) -> str:
    times = (f"{number} {row.unit}".strip() if number else "" for number in percentiles(row))
    return f"| {row.what} | {len(row.samples)} | {' | '.join(times)} |"
