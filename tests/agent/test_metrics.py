"""What an agent's `/metrics` says: that a run is alive, what the container uses, and nothing of any task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from terrahalt_agent.adapters.metrics import Metrics
from terrahalt_agent.adapters.resources import Resources
from terrahalt_agent.core.resources import Disk, Memory
from tests.agent.test_agent import Life

LIMITED = SimpleNamespace(memory=lambda: Memory(100, 400), disk=lambda: Disk(1, 3))


def samples(resources: Any = LIMITED, *, has_run: bool = False) -> dict[str, float]:
    metrics = Metrics("0.1.0", "terraform", cast(Any, resources), lambda: has_run)
    families = text_string_to_metric_families(metrics.page()[0].decode())
    return {sample.name.removeprefix("terrahalt_agent_"): sample.value for f in families for sample in f.samples}


def test_it_tells_whether_a_run_is_alive_and_what_is_used() -> None:
    used = {"memory_used_bytes": 100, "memory_limit_bytes": 400, "disk_used_ratio": 0.25}
    assert samples() == {"build_info": 1, "run_alive": 0, **used}
    assert samples(has_run=True)["run_alive"] == 1


def test_what_can_not_be_read_is_absent(tmp_path: Path) -> None:
    assert set(samples(Resources(tmp_path / "none", tmp_path / "none"))) == {"build_info", "run_alive"}


def test_a_run_is_alive_from_its_start_until_its_end_is_told() -> None:
    life = Life()
    assert not life.agent.has_run
    life.start()
    assert life.agent.has_run
    life.end_run()
    assert not life.agent.has_run
