"""An operator's metrics, fed by what the real core decides about one task, and what a scrape of them says.

`Measured.looks` is one look at the task as the API server has it: its writes are taken unless the test says otherwise.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from terrahalt_operator.adapters.metrics import Metrics
from terrahalt_operator.core.actions import ReleaseClaim, WriteStatus
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import Task
from terrahalt_operator.core.schedule import PoolCounts
from terrahalt_protocol.messages import Lock, LockCondition, Outcome, Rung, StateCondition, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, RUN, a_report, holding

KEY = ("pool", "team-a", "default")
DEFAULT = {"namespace": "team-a", "pool": "default"}
Samples = dict[str, float]


class Measured:
    def __init__(self, task: Task, metrics: Metrics | None = None) -> None:
        """`metrics`: of another task's operator too."""
        self.task, self.metrics = task, metrics or b.metrics()

    def looks(self, after_s: float, **snapshot: Any) -> None:
        """At the task with its claim, unless `claimed=False`."""
        now = NOW + after_s
        for action in decide(b.a_snapshot(task=self.task, **snapshot), now).actions:
            if isinstance(action, WriteStatus):
                self.metrics.status_written(self.task, action.status, pool="default")
                self.task = replace(self.task, status=action.status)
            if isinstance(action, ReleaseClaim):
                self.metrics.claim_released(action.claim, self.task, now)

    def runs(self, at_s: float, result: Any, *, run_id: str = RUN, **final: Any) -> None:
        """Given to its agent at `at_s`; the run begins 0.2 s later, and ends 30 s after that."""
        claimed: dict[str, Any] = {"claim": b.a_claim(self.task, run_id=run_id)}
        self.looks(at_s, **claimed)
        claimed["session"] = holding(run_id)
        begun: dict[str, Any] = {"received_at": NOW + at_s + 0.5, "started_s": 0.3, "run_id": run_id}
        self.looks(at_s + 0.5, **claimed, report=a_report(Step.PREPARE, **begun))
        end = {"received_at": NOW + at_s + 30.2, "started_s": 30.0, "run_id": run_id, "result": result, **final}
        self.looks(at_s + 30.2, **claimed, report=a_report(Step.SWEEP, **end))


def a_cancelled_result(**changes: Any) -> Any:
    return b.a_result(Outcome.CANCELLED, **changes)


def of_a_busy_day() -> Metrics:
    """Every metric that there is has a value."""
    metrics = b.metrics(cancel_pending_s=3.0)
    metrics.pool_seen(KEY, PoolCounts(agents=5, idle=1, busy=2, starting=1, queued=4), is_ready=True)
    metrics.pool_written()
    told = b.a_cancel_report(Rung.KILL, received_s=9.0, signalled_s=8.0, exited_s=1.0, swept_s=0.9)
    at_risk = a_cancelled_result(forced=True, state=StateCondition.CORRUPT, lock=Lock(condition=LockCondition.HELD))
    Measured(b.a_task(cancel=True), metrics).runs(0.0, at_risk, cancel=told)
    lost = Measured(b.a_given_task(), metrics)
    lost.looks(0.0, pod=b.ended_pod, session=None, state_lock=b.a_held_lock)
    return metrics


def samples(metrics: Metrics) -> Samples:
    """By `key`; of histograms the sums and counts alone."""
    return {
        key(sample.name, **sample.labels): sample.value
        for family in families(metrics)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def families(metrics: Metrics) -> list[Metric]:
    """What the page says, but for what the library says of every process."""
    text = metrics.page()[0].decode()
    return [family for family in text_string_to_metric_families(text) if not family.name.startswith("process_")]


def key(name: str, **labels: str) -> str:
    return name + (str(sorted(labels.items())) if labels else "")


def summed(metrics: Metrics, name: str, **labels: str) -> tuple[float, float]:
    """How often a histogram was fed, and with how much in all; (0, 0): never."""
    found = samples(metrics)
    count, total = (found.get(key(f"{name}_{what}", **labels), 0.0) for what in ("count", "sum"))
    return count, round(total, 6)
