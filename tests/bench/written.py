"""How measured results get into the docs: between two marks, so that what people wrote around them stays.

Pure; called by `__main__` and by `tests/soak/test_a_pool_of_twenty.py`.
"""

from __future__ import annotations

import re
from typing import Any

from tests.bench import machine, start
from tests.bench.figures import Part, Row, percentile


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


def start_table(part: Part, found: dict[str, Any]) -> str:
    """`found`: what else was noted of the same bench."""
    rows = {row.what: row for row in part.rows if row.samples}
    ratio = next((ratio.value for ratio in part.ratios if ratio.what == start.RATIO), None)
    sooner = "" if ratio is None else f"At the median the warm agent is there {ratio:.3g} times sooner."
    cluster = found["cluster"]
    return "\n".join(
        [
            "| create answered → `terraform init` exec'd | n | median | p95 | max |",
            "|---|---|---|---|---|",
            *(_line(what, rows[name]) for what, name in _SHOWN.items() if name in rows),
            "",
            *(f"**Missed: {what}.**" for what in part.missed),
            sooner,
            circumstances(found["machine"], found["command"], found["at"]),
            f"Kubernetes {cluster['kubernetes']}, {cluster['runtime']}, nodes: {len(cluster['nodes'])}; load of the"
            f" minute before: {found['load_before']:.2f}.",
        ]
    )


_SHOWN = {"a task, warm agent": start.AGENT, "a bare Job": start.JOB}


def _line(what: str, row: Row) -> str:
    times = (row.median, percentile(row.samples, 95), max(row.samples))
    return f"| {what} | {len(row.samples)} | {' | '.join(f'{ms:.0f} ms' for ms in times)} |"
