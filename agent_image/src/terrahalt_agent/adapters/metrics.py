"""What Prometheus reads at the agent's `/metrics`, looked at when somebody asks; docs/monitoring.md has each name.

Few on purpose: an agent lives for one run, and what became of that the operator counts. Must never tell anything of a
task: whoever may scrape may not read it. The only door to prometheus_client; called by `server`, made by `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from terrahalt_agent.adapters.resources import Resources


class Metrics(Collector):
    def __init__(self, version: str, engine: str, resources: Resources, has_run: Callable[[], bool]) -> None:
        self._labels = {"version": version, "engine": engine}
        self._resources, self._has_run = resources, has_run
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def page(self) -> tuple[bytes, str]:
        """The text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[GaugeMetricFamily]:
        info = GaugeMetricFamily("terrahalt_agent_build_info", "The version of the agent.", labels=tuple(self._labels))
        info.add_metric(tuple(self._labels.values()), 1)
        yield info
        yield _gauge("run_alive", "1: something of a run is alive here; 0: nothing is.", self._has_run())
        if (memory := self._resources.memory()) is not None:
            yield _gauge("memory_used_bytes", "Memory of the container, without file cache.", memory.used_bytes)
            yield _gauge("memory_limit_bytes", "The limit of the container's memory.", memory.limit_bytes)
        if (disk := self._resources.disk()) is not None:
            text = "How full the disk of the working directory is, from 0 to 1."
            yield _gauge("disk_used_ratio", text, disk.used_share)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing is asked for yet, while it is registered."""
        return ()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"terrahalt_agent_{name}", text, value=float(value))
