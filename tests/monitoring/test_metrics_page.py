"""What both sides print is what Prometheus' conventions want."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from terrahalt_agent.adapters.metrics import Metrics as OfAgent
from terrahalt_agent.core.resources import Disk, Memory
from tests.monitoring.promtool import complaints
from tests.operator_core import builders as b
from tests.operator_core.measured import of_a_busy_day


def of_an_agent() -> bytes:
    resources = SimpleNamespace(memory=lambda: Memory(1, 2), disk=lambda: Disk(1, 1))
    return OfAgent("0.1.0", "terraform", cast(Any, resources), lambda: True).page()[0]


@pytest.mark.parametrize(
    "page",
    [of_a_busy_day().page()[0], b.metrics(leads=False, watch_age_s=None).page()[0], of_an_agent()],
    ids=["the one that leads", "one that stands by", "an agent"],
)
def test_promtool_has_nothing_to_say_of_the_page(page: bytes) -> None:
    assert b"terrahalt_" in page
    assert complaints("check", "metrics", stdin=page) == ""


def test_promtool_would_say_what_is_wrong() -> None:
    page = of_a_busy_day().page()[0].replace(b"terrahalt_tasks_ended_total", b"terrahalt_tasks_ended")
    assert 'terrahalt_tasks_ended counter metrics should have "_total" suffix' in complaints(
        "check", "metrics", stdin=page
    )
