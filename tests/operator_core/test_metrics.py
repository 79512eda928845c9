"""What is counted of tasks, from what the core decides; by whom, how often, and what a scrape says of the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from terrahalt_operator.adapters.metrics import Metrics
from terrahalt_operator.core import actions as act
from terrahalt_operator.core import measures
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import CANCELLING, ApprovalMode, CancelMode, CancelStatus, Pool, Task
from terrahalt_operator.core.schedule import PoolCounts, PoolDecision, Problem
from terrahalt_operator.effects import Effects
from terrahalt_operator.errors import Conflict, NotFound, Unreachable
from terrahalt_protocol.messages import Lock, LockCondition, Outcome, Rung, StateCondition, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, RUN, a_cancel_report, a_report, a_result, a_task, at, holding
from tests.operator_core.measured import (
    DEFAULT,
    KEY,
    Measured,
    a_cancelled_result,
    families,
    key,
    of_a_busy_day,
    samples,
    summed,
)

ENDED = "terrahalt_tasks_ended_total"
APPLIED = {"action": "Apply", "result": "Succeeded"}


# ---- what a task's way is worth


def test_a_task_that_runs_is_measured_from_its_creation_to_its_end() -> None:
    seen = Measured(a_task(created_at=NOW - 60))
    seen.runs(2.0, a_result())
    assert summed(seen.metrics, "terrahalt_queue_wait_seconds", **DEFAULT) == (1, 62)
    assert summed(seen.metrics, "terrahalt_start_latency_seconds") == (1, 0.2)
    assert summed(seen.metrics, "terrahalt_run_duration_seconds", **APPLIED) == (1, 30)
    assert samples(seen.metrics)[key(ENDED, **DEFAULT, **APPLIED)] == 1
    assert summed(seen.metrics, "terrahalt_cancel_duration_seconds", rung="Interrupt") == (0, 0)


def test_what_a_person_takes_to_approve_is_no_time_of_a_run_and_no_wait_in_the_queue() -> None:
    seen = Measured(a_task(approval=ApprovalMode.MANUAL))
    planned = b.a_plan_report().report
    seen.runs(0.0, planned.result, plan=planned.plan)
    assert summed(seen.metrics, "terrahalt_run_duration_seconds", action="Apply", result="AwaitingApproval") == (1, 30)
    assert key(ENDED, **DEFAULT, **APPLIED) not in samples(seen.metrics)

    approved = msgspec.structs.replace(seen.task.spec, approved_plan_digest=b.DIGEST)
    seen.task = replace(seen.task, spec=approved)
    seen.looks(7200.0, claimed=False, queueing=b.in_line)
    seen.runs(7300.0, a_result(), run_id=b.OTHER_RUN)
    # Its second run began when it was given to an agent, as far as is on record.
    assert summed(seen.metrics, "terrahalt_run_duration_seconds", **APPLIED) == (1, 30.2)
    assert summed(seen.metrics, "terrahalt_queue_wait_seconds", **DEFAULT) == (1, 60)
    assert summed(seen.metrics, "terrahalt_start_latency_seconds") == (1, 0.2)


def test_a_cancel_is_measured_by_its_stages_until_its_workspace_is_free() -> None:
    seen = Measured(a_task())
    seen.looks(0.0)
    seen.task = replace(seen.task, spec=b.a_spec(cancel=True))
    seen.looks(10.0, session=holding(), report=a_report(received_at=NOW + 9))
    told = a_cancel_report(received_s=3.5, signalled_s=3.0, exited_s=1.0, swept_s=0.5)
    end = a_report(Step.SWEEP, received_at=NOW + 14, started_s=14.0, cancel=told, result=a_cancelled_result())
    seen.looks(14.25, session=holding(), report=end)
    assert summed(seen.metrics, "terrahalt_cancel_duration_seconds", rung="Interrupt") == (1, 4.25)
    stages = {"asked_to_sent": 0.0, "sent_to_signalled": 1.0, "signalled_to_exited": 2.0, "exited_to_freed": 1.25}
    for stage, stage_s in stages.items():
        found = summed(seen.metrics, "terrahalt_cancel_stage_duration_seconds", rung="Interrupt", stage=stage)
        assert found == (1, stage_s), stage


def test_what_a_cancel_has_not_gone_through_is_no_stage() -> None:
    """A timeout is the agent's own, and a kill before the first operation gives no SIGINT."""
    seen = Measured(a_task())
    told = a_cancel_report(Rung.GATE, cause="TimedOut", received_s=5.0, exited_s=2.0, swept_s=1.0)
    seen.runs(0.0, a_result(Outcome.FAILED), cancel=told)
    (stages,) = [f for f in families(seen.metrics) if f.name == "terrahalt_cancel_stage_duration_seconds"]
    assert {sample.labels["stage"] for sample in stages.samples} == {"asked_to_exited", "exited_to_freed"}


def test_an_end_that_nobody_asked_for_in_time_is_no_cancel() -> None:
    """A newer task came when the apply had begun: the agent has gone through no ladder."""
    spared = CancelStatus(by="Superseded", superseded_by="network-2", requested_at=at(-5))
    seen = Measured(b.a_task(status=b.a_status("Applying", cancel=spared)))
    seen.looks(0.0, session=b.sparing(), report=b.a_final_report())
    assert samples(seen.metrics)[key(ENDED, **DEFAULT, **APPLIED)] == 1
    assert not [name for name in samples(seen.metrics) if name.startswith("terrahalt_cancel_duration")]


def test_a_task_that_ends_in_the_queue_has_ended_and_had_no_run() -> None:
    seen = Measured(a_task(cancel=True))
    seen.looks(0.0, claimed=False)
    found = samples(seen.metrics)
    assert found[key(ENDED, **DEFAULT, action="Apply", result="Cancelled")] == 1
    assert not [name for name in found if name.startswith(("terrahalt_run_duration", "terrahalt_queue_wait_seconds_"))]


def test_a_task_that_was_given_up_with_its_claim_alone_on_record_was_given_to_no_agent() -> None:
    seen = Measured(a_task(cancel=True, cancel_mode=CancelMode.ABANDON))
    seen.looks(0.0, session=None)
    assert seen.task.status.is_abandoned
    assert not [name for name in samples(seen.metrics) if name.startswith(("terrahalt_queue_wait", "terrahalt_run_"))]


def test_an_agent_that_refuses_its_run_has_had_none() -> None:
    seen = Measured(a_task())
    seen.looks(0.0)
    seen.looks(1.0, session=b.a_session(refused=b.a_refusal()))
    found = samples(seen.metrics)
    assert found[key(ENDED, **DEFAULT, action="Apply", result="Failed")] == 1
    assert not [name for name in found if name.startswith("terrahalt_run_duration")]


@pytest.mark.parametrize(
    ("result", "counter", "labels"),
    [
        (a_cancelled_result(forced=True), "terrahalt_forced_ends_total", {}),
        (a_result(lock=Lock(condition=LockCondition.HELD)), "terrahalt_leaked_locks_total", {}),
        *(
            (a_result(state=state), "terrahalt_states_in_doubt_total", {"state": state.value})
            for state in StateCondition
            if state is not StateCondition.COMPLETE
        ),
    ],
)
def test_what_an_end_leaves_in_doubt_is_counted_and_nothing_else_is(
    result: Any, counter: str, labels: dict[str, str]
) -> None:
    seen = Measured(a_task())
    seen.runs(0.0, result)
    in_doubt = {
        name: value
        for name, value in samples(seen.metrics).items()
        if name.startswith(("terrahalt_forced", "terrahalt_leaked", "terrahalt_states", "terrahalt_agents_lost"))
    }
    assert in_doubt == {key(counter, **DEFAULT, **labels): 1}


def test_a_lock_that_nobody_could_look_at_is_not_said_to_be_left_behind() -> None:
    seen = Measured(a_task())
    seen.runs(0.0, a_result(lock=Lock(condition=LockCondition.UNKNOWN)))
    assert not [name for name in samples(seen.metrics) if name.startswith("terrahalt_leaked")]


def test_an_agent_that_ended_without_a_report_is_counted_with_the_lock_and_the_state_that_it_left() -> None:
    seen = Measured(b.a_given_task())
    seen.looks(0.0, pod=b.ended_pod, session=None, state_lock=b.a_held_lock)
    found = samples(seen.metrics)
    assert found[key("terrahalt_agents_lost_total", **DEFAULT)] == 1
    assert found[key("terrahalt_leaked_locks_total", **DEFAULT)] == 1
    assert found[key("terrahalt_states_in_doubt_total", **DEFAULT, state="Unknown")] == 1


# ---- once


def test_an_end_is_counted_by_the_operator_that_wrote_it_and_by_no_other() -> None:
    seen = Measured(a_task())
    seen.runs(0.0, a_result())
    before = samples(seen.metrics)
    successor = Measured(replace(seen.task, generation=2))  # whose end is to be written anew
    for operator in (seen, successor):
        operator.task = successor.task
        operator.looks(60.0, session=holding(), report=b.a_final_report())
        operator.looks(61.0)
    writes = key("terrahalt_status_writes_total", kind="task")
    assert samples(seen.metrics) == before | {writes: before[writes] + 1}
    assert not [name for name in samples(successor.metrics) if name.startswith((ENDED, "terrahalt_run_duration"))]


class Api:
    """The API server's answer to each write; None: the object."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = list(answers)

    async def patch(self, *_: object, **__: object) -> dict[str, Any]:
        return self._next()

    async def delete(self, resource: tuple[str, str], namespace: str, *_: object, **__: object) -> dict[str, Any]:
        assert (resource[1] == "leases") is (namespace == "claims")
        return self._next()

    async def get(self, resource: tuple[str, str], namespace: str, *_: object) -> dict[str, Any]:
        assert (resource[1] == "leases") is (namespace == "claims")
        return {"metadata": {"uid": b.UID, "name": "claim", "resourceVersion": "21"}}

    def _next(self) -> dict[str, Any]:
        if (answer := self._answers.pop(0)) is not None:
            raise answer
        return {}


def effects_on(api: Api, metrics: Metrics, task: Task, pool: Pool | None) -> Effects:
    world = SimpleNamespace(
        pool=lambda *_: pool,
        see=lambda *_, **__: None,
        tasks=SimpleNamespace(
            raw={task.uid: {"metadata": {"resourceVersion": task.resource_version}}}.get, values={task.uid: task}
        ),
        claims_namespace="claims",
        claims=SimpleNamespace(by_name={}, release=lambda _: None, put=lambda _: None),
        status_written_at={},
        wake_state=lambda _: None,
    )
    return Effects(
        cluster=cast(Any, api),
        world=cast(Any, world),
        worklist=cast(Any, None),
        namespace="ops",
        operator_ca="CA",
        clock=lambda: NOW,
        uptime=lambda: NOW,
        new_run_id=lambda: "run",
        tell=lambda *_: None,
        metrics=metrics,
    )


@pytest.mark.parametrize("refusal", [Conflict("it changed"), Unreachable("no answer")])
async def test_a_write_that_was_tried_again_is_counted_once(refusal: Exception) -> None:
    task, metrics = a_task(cancel=True), b.metrics()
    effects = effects_on(Api(refusal, None), metrics, task, b.a_pool())
    (write,) = decide(b.a_snapshot(task=task, claimed=False), NOW).actions
    with pytest.raises(type(refusal)):
        await effects.on_task(task.uid, cast(Any, write))
    assert key("terrahalt_status_writes_total", kind="task") in samples(metrics)
    assert samples(metrics)[key("terrahalt_status_writes_total", kind="task")] == 0
    await effects.on_task(task.uid, cast(Any, write))
    assert samples(metrics)[key(ENDED, **DEFAULT, action="Apply", result="Cancelled")] == 1
    assert samples(metrics)[key("terrahalt_status_writes_total", kind="task")] == 1


async def test_a_write_that_was_taken_without_an_answer_is_counted_once_it_is_seen() -> None:
    task, metrics = a_task(cancel=True), b.metrics()
    effects = effects_on(Api(Unreachable("no answer"), None, None, None), metrics, task, b.a_pool())
    (write,) = decide(b.a_snapshot(task=task, claimed=False), NOW).actions
    assert isinstance(write, act.WriteStatus)
    with pytest.raises(Unreachable):
        await effects.on_task(task.uid, write)
    ended = key(ENDED, **DEFAULT, action="Apply", result="Cancelled")
    release = act.ReleaseClaim(b.a_claim(task))
    await effects.on_task(task.uid, release)  # nobody has told of it yet
    assert ended not in samples(metrics)
    taken = replace(task, status=write.status, resource_version="11")
    cast(Any, effects)._world.tasks.values[task.uid] = taken
    for _ in range(2):
        await effects.on_task(task.uid, release)
        assert samples(metrics)[ended] == 1


@pytest.mark.parametrize("seen", [a_task(resource_version="11"), None], ids=["it is another", "it is gone"])
def test_a_write_without_an_answer_that_was_not_taken_is_not_counted(seen: Task | None) -> None:
    metrics, new = b.metrics(), b.a_terminal_status()
    metrics.status_unanswered(a_task(), new, pool="default")
    metrics.status_seen(b.UID, seen)
    metrics.status_seen(b.UID, a_task(status=new, resource_version="12"))  # as somebody else has written it
    assert not [name for name in samples(metrics) if name.startswith(ENDED)]


def test_a_write_that_was_tried_again_with_success_is_not_counted_for_the_first_try_too() -> None:
    metrics, new = b.metrics(), b.a_terminal_status()
    metrics.status_unanswered(a_task(), new, pool="default")
    metrics.status_written(a_task(), new, pool="default")
    metrics.status_seen(b.UID, a_task(status=new, resource_version="11"))
    assert samples(metrics)[key(ENDED, **DEFAULT, **APPLIED)] == 1


async def test_a_pool_that_is_not_there_is_no_label_whatever_a_task_calls_it() -> None:
    task, metrics = a_task(cancel=True), b.metrics()
    effects = effects_on(Api(None), metrics, task, None)
    (write,) = decide(b.a_snapshot(task=task, claimed=False), NOW).actions
    await effects.on_task(task.uid, cast(Any, write))
    ended = [name for name in samples(metrics) if name.startswith(ENDED)]
    assert ended == [key(ENDED, namespace="team-a", pool="", action="Apply", result="Cancelled")]


CANCELLED = b.a_task(
    status=b.a_terminal_status(
        "Cancelled", cancel=CancelStatus(by="User", requested_at=at(-9), exited_at=at(-2), rung="Interrupt")
    )
)
FREED = {"rung": "Interrupt", "stage": "exited_to_freed"}


async def test_a_workspace_is_freed_once_however_often_its_release_is_tried() -> None:
    metrics = b.metrics()
    effects = effects_on(Api(Unreachable("no answer"), NotFound("gone")), metrics, CANCELLED, b.a_pool())
    release = act.ReleaseClaim(b.a_claim(CANCELLED))
    with pytest.raises(Unreachable):
        await effects.on_task(b.UID, release)
    await effects.on_task(b.UID, release)
    assert summed(metrics, "terrahalt_cancel_stage_duration_seconds", **FREED) == (0, 0)
    await effects_on(Api(None), metrics, CANCELLED, b.a_pool()).on_task(b.UID, release)
    assert summed(metrics, "terrahalt_cancel_stage_duration_seconds", **FREED) == (1, 2)


async def test_a_claim_that_came_after_the_end_frees_nothing_of_the_run() -> None:
    metrics = b.metrics()
    late = act.ReleaseClaim(b.a_claim(CANCELLED, run_id="01LATE"))
    await effects_on(Api(None), metrics, CANCELLED, b.a_pool()).on_task(b.UID, late)
    assert summed(metrics, "terrahalt_cancel_stage_duration_seconds", **FREED) == (0, 0)


# ---- pools, and what is only looked at


async def test_agents_are_told_by_state_and_a_pools_problem_with_them() -> None:
    metrics, pool = b.metrics(), b.a_pool()
    counts = PoolCounts(agents=7, idle=1, busy=2, starting=1, queued=4)
    decision = PoolDecision(counts=counts, problem=Problem("QuotaExceeded", "exceeded quota"))
    await effects_on(Api(None), metrics, a_task(), pool).write_pool_status(KEY, pool, decision, None)
    found = samples(metrics)
    states = {"idle": 1, "busy": 2, "starting": 1, "ending": 3}
    assert {state: found[key("terrahalt_agents", **DEFAULT, state=state)] for state in states} == states
    assert found[key("terrahalt_tasks_waiting", **DEFAULT)] == 4
    assert found[key("terrahalt_pool_ready", **DEFAULT)] == 0
    assert found[key("terrahalt_status_writes_total", kind="pool")] == 1


def test_what_is_rare_is_there_as_zero_before_it_happens_so_that_a_rise_is_seen() -> None:
    metrics = b.metrics()
    metrics.pool_seen(KEY, PoolCounts(), is_ready=True)
    found = samples(metrics)
    for counter in ("terrahalt_forced_ends_total", "terrahalt_leaked_locks_total", "terrahalt_agents_lost_total"):
        assert found[key(counter, **DEFAULT)] == 0
    assert found[key("terrahalt_states_in_doubt_total", **DEFAULT, state="NotPersisted")] == 0


async def test_nothing_is_told_of_a_pool_that_is_gone() -> None:
    metrics = of_a_busy_day()
    assert [name for name in samples(metrics) if "team-a" in name]
    effects = effects_on(Api(None, None), metrics, a_task(), None)
    world = cast(Any, effects)._world
    world.budgets = world.lost = world.traces = set()
    await effects.remove_traces(KEY, "team-a", "default")
    assert not [name for name in samples(metrics) if "team-a" in name]


def test_one_that_stands_by_tells_of_itself_alone() -> None:
    told = samples(b.metrics(leads=False, watch_age_s=None))
    assert {name for name in told if told[name] or name.startswith("terrahalt_leader")} == {
        key("terrahalt_build_info", version="0.1.0"),
        "terrahalt_leader",
    }
    assert not {"terrahalt_cancel_pending_seconds", "terrahalt_watch_age_seconds"} & set(told)


def test_the_one_that_leads_says_so_and_how_old_its_news_are() -> None:
    told = samples(b.metrics(watch_age_s=7.5, cancel_pending_s=42.0))
    assert (told["terrahalt_leader"], told["terrahalt_watch_age_seconds"]) == (1, 7.5)
    assert told["terrahalt_cancel_pending_seconds"] == 42


def test_the_oldest_cancel_that_has_not_ended_counts() -> None:
    def cancelled(since_s: float, phase: str = CANCELLING) -> Task:
        asked = CancelStatus(by="User", requested_at=at(-since_s))
        return b.a_task(status=b.a_status(phase, cancel=asked))

    assert measures.cancel_pending_s([b.a_given_task(), cancelled(900, "Cancelled")], NOW) == 0
    # A newer task came too late for this one, which goes on.
    assert measures.cancel_pending_s([cancelled(900, "Applying")], NOW) == 0
    assert measures.cancel_pending_s([cancelled(5), cancelled(30), cancelled(10)], NOW) == 30


async def test_each_look_is_timed_also_one_that_fails() -> None:
    metrics = b.metrics()

    async def work(key: tuple[str, ...]) -> None:
        if key[0] == "claim":
            raise Conflict("it changed")

    timed = metrics.timed(work)
    await timed(("task", "uid"))
    await timed(KEY)
    with pytest.raises(Conflict):
        await timed(("claim", "run-1"))
    await timed(("state", "run-1"))
    for kind in ("task", "pool", "claim", "state"):
        assert summed(metrics, "terrahalt_reconcile_duration_seconds", kind=kind)[0] == 1


def test_no_label_is_anything_of_a_task_but_what_the_api_has_words_for() -> None:
    page, _ = of_a_busy_day().page()
    assert b"team-a" in page
    for secret in (b.a_task().name, b.UID, RUN, b.a_task().spec.workspace, "default-agent-1", b.POD_UID, "lock-id"):
        assert secret.encode() not in page
