"""What Prometheus reads at `/metrics`; docs/monitoring.md has each name, its labels and what it means.

Told by `effects` of each write that the API server took, so an end is counted once, by the operator that wrote it;
what is only looked at (agents, ages) is read when somebody asks. No label is a name that a task's author chooses: a
pool that is not there is "", and with a pool its series go. Must never make a caller wait. The only door to
prometheus_client; called by `app`, `effects` and `health`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from terrahalt_operator.core import measures
from terrahalt_operator.core.model import Claim, Task, TaskStatus
from terrahalt_operator.core.schedule import PoolCounts
from terrahalt_operator.core.status import AGENT_LOST
from terrahalt_protocol.messages import LockCondition, StateCondition

Key = tuple[str, ...]
"""Of `worklist`: ("pool", namespace, name) of a pool, and what else is looked at by its kind first."""
POOL = ("namespace", "pool")
IN_DOUBT = tuple(state.value for state in StateCondition if state is not StateCondition.COMPLETE)

_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CANCEL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""The last is beyond every ladder of the default grace."""
_WAIT_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0)
_RUN_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0)


@dataclass(frozen=True, slots=True)
class Sights:
    """What is true when somebody asks; called in a thread of its own."""

    leads: Callable[[], bool]
    watch_age_s: Callable[[], float | None]
    """None: nothing is watched yet."""
    cancel_pending_s: Callable[[], float]
    """For how long the oldest cancel has not ended; 0: there is none."""


class Metrics(Collector):
    def __init__(self, version: str, sights: Sights) -> None:
        self._version, self._sights = version, sights
        self._pools: dict[Key, tuple[PoolCounts, bool]] = {}
        """Those that this operator has looked at, as the leader: counts, and whether agents start there."""
        self._unanswered: dict[str, tuple[Task, TaskStatus, str]] = {}
        """Task UID -> the write of its status that got no answer."""
        disable_created_metrics()
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        own.register(self)
        self._queue_wait = Histogram(
            "terrahalt_queue_wait_seconds",
            "From the creation of a task until it was given to an agent.",
            POOL,
            buckets=_WAIT_S,
            registry=own,
        )
        self._start_latency = Histogram(
            "terrahalt_start_latency_seconds",
            "From when a task was given to an agent until its run began there.",
            buckets=_QUICK_S,
            registry=own,
        )
        self._run_duration = Histogram(
            "terrahalt_run_duration_seconds",
            "From the beginning of a run until its end, by action and by the phase that followed.",
            ("action", "result"),
            buckets=_RUN_S,
            registry=own,
        )
        self._cancel_duration = Histogram(
            "terrahalt_cancel_duration_seconds",
            "From when the end of a run was asked for until it was on record, by the highest rung.",
            ("rung",),
            buckets=_CANCEL_S,
            registry=own,
        )
        self._cancel_stages = Histogram(
            "terrahalt_cancel_stage_duration_seconds",
            "The parts of a cancel, by the highest rung.",
            ("rung", "stage"),
            buckets=_CANCEL_S,
            registry=own,
        )
        self._ended = Counter(
            "terrahalt_tasks_ended_total",
            "Tasks that have ended, by action and terminal phase.",
            (*POOL, "action", "result"),
            registry=own,
        )
        self._forced = Counter(
            "terrahalt_forced_ends_total", "Runs that left operations of terraform half done.", POOL, registry=own
        )
        self._leaked = Counter(
            "terrahalt_leaked_locks_total", "Runs that left the lock of their state behind.", POOL, registry=own
        )
        self._lost = Counter(
            "terrahalt_agents_lost_total", "Runs whose agent ended without a report.", POOL, registry=own
        )
        self._in_doubt = Counter(
            "terrahalt_states_in_doubt_total",
            "Runs that left a state that is not known to be complete.",
            (*POOL, "state"),
            registry=own,
        )
        self._writes = Counter(
            "terrahalt_status_writes_total", "Writes of a status that the API server took.", ("kind",), registry=own
        )
        self._reconciles = Histogram(
            "terrahalt_reconcile_duration_seconds",
            "One look at a task, a pool, a claim or a state, and what followed from it.",
            ("kind",),
            buckets=_QUICK_S,
            registry=own,
        )
        self._looks = {kind: self._reconciles.labels(kind) for kind in ("task", "pool", "claim", "state")}
        self._task_writes, self._pool_writes = self._writes.labels("task"), self._writes.labels("pool")
        self._of_pools = (self._queue_wait, self._ended, self._forced, self._leaked, self._lost, self._in_doubt)

    # ---- what happens

    def status_written(self, task: Task, new: TaskStatus, *, pool: str) -> None:
        """`pool`: the task's; empty: there is none of that name."""
        self._unanswered.pop(task.uid, None)
        self._task_writes.inc()
        if (wait_s := measures.queue_wait_s(task, new)) is not None:
            self._queue_wait.labels(task.namespace, pool).observe(wait_s)
        if (latency_s := measures.start_latency_s(task, new)) is not None:
            self._start_latency.observe(latency_s)
        if (run_s := measures.run_duration_s(task, new)) is not None:
            self._run_duration.labels(task.spec.action.value, new.phase).observe(run_s)
        if measures.has_ended(task, new):
            self._count_end(task, new, (task.namespace, pool))

    def status_unanswered(self, task: Task, new: TaskStatus, *, pool: str) -> None:
        """It may have been taken all the same: where the API server is away, what matters most is written then."""
        self._unanswered[task.uid] = task, new, pool

    def status_seen(self, uid: str, seen: Task | None) -> None:
        """Before anything else is done about the task: what it has now says what became of that write."""
        if (tried := self._unanswered.get(uid)) is None:
            return
        task, new, pool = tried
        if seen is not None and seen.resource_version == task.resource_version:
            return  # it is not known yet
        del self._unanswered[uid]
        if seen is not None and seen.status == new:
            self.status_written(task, new, pool=pool)

    def _count_end(self, task: Task, new: TaskStatus, where: tuple[str, str]) -> None:
        self._ended.labels(*where, task.spec.action.value, new.phase).inc()
        if (cancel_s := measures.cancel_duration_s(task, new)) is not None and new.cancel is not None:
            self._cancel_duration.labels(new.cancel.rung).observe(cancel_s)
            for stage, stage_s in measures.stages_s(new.cancel):
                self._cancel_stages.labels(new.cancel.rung, stage).observe(stage_s)
        if (result := new.result) is None:
            return
        if result.forced:
            self._forced.labels(*where).inc()
        if result.lock == LockCondition.HELD:
            self._leaked.labels(*where).inc()
        if result.reason == AGENT_LOST:
            self._lost.labels(*where).inc()
        if result.state in IN_DOUBT:
            self._in_doubt.labels(*where, result.state).inc()

    def claim_released(self, claim: Claim, task: Task | None, now: float) -> None:
        """By this operator, as the first: a release that is tried again finds nothing."""
        if task is None or (freeing_s := measures.freeing_s(task.status, claim.run_id, now)) is None:
            return
        assert task.status.cancel is not None
        self._cancel_stages.labels(task.status.cancel.rung, "exited_to_freed").observe(freeing_s)

    def pool_written(self) -> None:
        self._pool_writes.inc()

    def pool_seen(self, key: Key, counts: PoolCounts, *, is_ready: bool) -> None:
        is_new = key not in self._pools
        self._pools[key] = counts, is_ready
        if is_new:  # a counter that is there only from its first event on can't be seen to rise then
            _, *where = key
            for counter in (self._forced, self._leaked, self._lost):
                counter.labels(*where)
            for state in IN_DOUBT:
                self._in_doubt.labels(*where, state)

    def pool_gone(self, key: Key) -> None:
        if self._pools.pop(key, None) is None:
            return
        _, namespace, pool = key
        for metric in self._of_pools:
            metric.remove_by_labels({"namespace": namespace, "pool": pool})

    def timed(self, work: Callable[[Key], Awaitable[None]]) -> Callable[[Key], Awaitable[None]]:
        async def timed_work(key: Key) -> None:
            begun_s = time.perf_counter()
            try:
                await work(key)
            finally:
                self._looks[key[0]].observe(time.perf_counter() - begun_s)

        return timed_work

    # ---- what is asked for

    def page(self) -> tuple[bytes, str]:
        """The text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[GaugeMetricFamily]:
        leads = self._sights.leads()
        yield _gauge("terrahalt_build_info", "The version of the operator.", [((self._version,), 1)], ("version",))
        yield _gauge("terrahalt_leader", "1: this operator leads; 0: it stands by.", [((), leads)])
        if (age_s := self._sights.watch_age_s()) is not None:
            text = "Since when the watch of the cluster has told of no change, which there need not be."
            yield _gauge("terrahalt_watch_age_seconds", text, [((), age_s)])
        if not leads:
            return
        text = "For how long the oldest cancel has not ended; 0: none is under way."
        yield _gauge("terrahalt_cancel_pending_seconds", text, [((), self._sights.cancel_pending_s())])
        pools = [((namespace, pool), *seen) for (_, namespace, pool), seen in list(self._pools.items())]
        agents = [((*where, state), count) for where, counts, _ in pools for state, count in _by_state(counts)]
        yield _gauge("terrahalt_agents", "Agents of a pool, by what they do.", agents, (*POOL, "state"))
        waiting = [(where, counts.queued) for where, counts, _ in pools]
        yield _gauge("terrahalt_tasks_waiting", "Tasks that wait for an agent of a pool.", waiting, POOL)
        ready = [(where, is_ready) for where, _, is_ready in pools]
        yield _gauge("terrahalt_pool_ready", "1: agents start, as far as any are needed; 0: they can't.", ready, POOL)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing is asked for yet, while it is registered."""
        return ()


def _by_state(counts: PoolCounts) -> Iterable[tuple[str, int]]:
    """All agents: those that have had their runs, or are deleted, too."""
    others = counts.agents - counts.idle - counts.busy - counts.starting
    return ("idle", counts.idle), ("busy", counts.busy), ("starting", counts.starting), ("ending", max(0, others))


def _gauge(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> GaugeMetricFamily:
    """What the labels say, and the value."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for said, value in values:
        family.add_metric(said, float(value))
    return family
