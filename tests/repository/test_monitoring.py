"""docs/monitoring.md has every metric with its type and labels, and no other, and how long a cancel may take."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from terrahalt_agent.adapters.metrics import Metrics as OfAgent
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.core.resources import Disk, Memory
from terrahalt_protocol.budget import DEFAULT_CANCEL_GRACE_S
from tests.operator_core.measured import families, of_a_busy_day

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/monitoring.md").read_text()
ROW = re.compile(r"\| `(terrahalt_\w+)` \| (\w+) \| (.*?) \|")

Described = dict[str, tuple[str, set[str]]]


def described(title: str) -> Described:
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(section)}


def told(found: list[Metric]) -> Described:
    """By the names that a query uses."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in found
    }


def test_it_has_every_metric_of_the_operator_and_no_other() -> None:
    assert described("The operator's metrics") == told(families(of_a_busy_day()))


def test_it_has_every_metric_of_an_agent_and_no_other() -> None:
    resources = SimpleNamespace(memory=lambda: Memory(1, 2), disk=lambda: Disk(1, 1))
    page, _ = OfAgent("0.1.0", "terraform", cast(Any, resources), lambda: True).page()
    assert described("An agent's metrics") == told(list(text_string_to_metric_families(page.decode())))


def test_it_says_how_long_a_cancel_may_take_to_the_minute() -> None:
    t = Times()
    rungs_s = t.gate_s + t.settle_max_s + DEFAULT_CANCEL_GRACE_S + t.kill_providers_s + t.second_interrupt_s + t.kill_s
    after_s = t.sweeps * t.sweep_s + t.drain_s + t.aftermath_s + t.late_lock_s
    words = {7: "seven", 8: "eight", 9: "nine"}
    assert f"A cancel takes less than {words[int((rungs_s + after_s) // 60) + 1]} minutes with the grace" in TEXT
    assert f"it tries for up to {t.keep_errored_s / 60:.0f} minutes" in TEXT
