"""The order of the queue, how long a task waits in it, who makes way for whom, and when an object goes.

By `decide`; where tasks of several pools and namespaces meet is `tests/simulation/test_queue.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from terrahalt_operator.core import model, queue
from terrahalt_operator.core.actions import Decision, DeleteTask, ReleaseClaim, ReserveAgent, Send, WriteStatus
from terrahalt_operator.core.decide import decide
from terrahalt_operator.core.model import Snapshot, Supersede, Task, TaskStatus
from terrahalt_protocol.messages import Outcome, Rung, Start, Step
from tests.operator_core import builders as b
from tests.operator_core.builders import NOW, POD_UID, a_claim, a_report, a_snapshot, a_supersede, a_task, sparing

SUPERSEDED_PLAN = a_report(Step.PLAN, cancel=b.a_cancel_report(cause="Superseded", received_s=1.0))


def a_newer(mode: Supersede = Supersede.QUEUED, **changes: Any) -> Task:
    """A task of the workspace that came a second after `a_task()`, and waits."""
    newer = {"name": "network-2", "uid": "newer", "supersede": mode, "phase": model.QUEUED, "created_at": NOW - 59}
    return a_task(**{**newer, **changes})


def the_status(decision: Decision) -> TaskStatus:
    (status,) = [action.status for action in decision.actions if isinstance(action, WriteStatus)]
    return status


def after(s: Snapshot, decision: Decision) -> Snapshot:
    """What it wrote and sent is known."""
    for action in decision.actions:
        if isinstance(action, WriteStatus):
            s = replace(s, task=replace(s.task, status=action.status))
        if isinstance(action, Send) and s.session is not None:
            s = replace(s, session=replace(s.session, sent_cancel=action.command))
    return s


# ---- the order


def test_the_queue_goes_by_priority_then_by_age_then_by_who_came_first_within_a_second() -> None:
    in_order = [
        a_task(name="urgent", priority=1, created_at=NOW),
        a_task(name="old", created_at=NOW - 9),
        a_task(name="young-9", created_at=NOW - 1, arrived=98),
        a_task(name="young-10", created_at=NOW - 1, arrived=102),
        a_task(name="young-11", created_at=NOW - 1, arrived=102),
        a_task(name="idle", priority=-1, created_at=NOW - 99),
    ]
    by_name = sorted(in_order, key=lambda task: task.name)
    assert sorted(by_name, key=queue.place) == in_order != by_name


# ---- the time in it


def test_a_task_that_waited_too_long_ends_and_nothing_ran() -> None:
    waits = a_snapshot(task=a_task(queue_timeout_seconds=60), claimed=False, queueing=b.in_line)
    waiting = after(waits, decide(waits, NOW - 1))
    assert decide(waiting, NOW - 1).wake_after_s == 1.0
    ended = the_status(decide(waiting, NOW))
    assert (ended.phase, ended.cancel, ended.queue) == (model.FAILED, None, None)
    assert ended.result is not None
    assert (ended.result.reason, ended.result.state, ended.result.lock) == ("QueueTimedOut", "Complete", "Released")
    assert ended.message == (
        "waited in the queue for the 60 s of queueTimeoutSeconds for an agent of pool default to start; nothing ran"
    )


def test_the_time_in_the_queue_is_over_also_for_a_task_that_no_pool_has_seen() -> None:
    unseen = a_snapshot(task=a_task(queue_timeout_seconds=70), claimed=False)
    assert decide(unseen, NOW) == Decision(wake_after_s=10.0)
    assert the_status(decide(unseen, NOW + 10)).phase == model.FAILED


def test_the_time_in_the_queue_is_no_timeout_of_a_run() -> None:
    running = a_snapshot(task=a_task(queue_timeout_seconds=1, status=b.a_status("Applying")), session=b.holding())
    assert not any(isinstance(a, WriteStatus) and a.status.is_terminal for a in decide(running, NOW).actions)


# ---- who makes way


@pytest.mark.parametrize(
    ("mode", "has_agent", "makes_way"),
    [
        (Supersede.NONE, False, False),
        (Supersede.QUEUED, False, True),
        (Supersede.QUEUED, True, False),
        (Supersede.PLANNING, False, True),
        (Supersede.PLANNING, True, True),
    ],
)
def test_an_older_task_makes_way_as_far_as_the_newer_one_says(
    mode: Supersede, has_agent: bool, makes_way: bool
) -> None:
    assert queue.superseder(a_task(), [a_newer(mode)], has_agent=has_agent) == ("network-2" if makes_way else "")


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "team-b"},
        {"workspace": "dns"},
        {"created_at": NOW - 60},
        {"created_at": NOW - 61},
        {"phase": ""},
        {"cancel": True},
        {"is_deleting": True},
        {"stamp": "uid-of-the-original"},
        {"status": b.a_terminal_status()},
    ],
    ids=str,
)
def test_nobody_makes_way_for_a_task_of_others_or_an_older_one_or_one_that_will_not_run(change: dict[str, Any]) -> None:
    assert queue.superseder(a_task(), [a_newer(Supersede.PLANNING, **change)], has_agent=False) == ""


def test_a_task_makes_way_for_the_newest_one() -> None:
    newest = a_newer(name="network-3", created_at=NOW - 1, status=b.a_status("Planning"))
    assert queue.superseder(a_task(), [newest, a_newer()], has_agent=False) == "network-3"


def test_a_task_in_the_queue_that_makes_way_has_never_run_and_says_for_whom() -> None:
    ended = the_status(decide(a_snapshot(claimed=False, superseded_by="network-2"), NOW))
    assert ended.phase == model.CANCELLED
    assert ended.result is not None
    assert ended.result.reason == "Superseded"
    assert ended.message == "task network-2 takes its place; it had not been given to an agent, and nothing ran"
    assert ended.cancel is not None
    assert (ended.cancel.by, ended.cancel.superseded_by, ended.cancel.rung) == ("Superseded", "network-2", "NotStarted")
    conditions = {c.type: (c.status, c.reason, c.message) for c in ended.conditions}
    assert conditions["CancelRequested"] == ("True", "Superseded", "task network-2 takes its place")


# ---- a run that makes way: its agent decides


def test_the_cancel_for_a_newer_task_is_on_record_before_it_is_sent() -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    write, send = decide(replace(s, report=a_report(Step.PLAN)), NOW).actions
    assert isinstance(write, WriteStatus)
    assert send == Send(POD_UID, a_supersede())
    assert (write.status.phase, write.status.message) == (
        "Planning",
        "makes way for task network-2, unless its apply has begun",
    )
    requested = next(c for c in write.status.conditions if c.type == "CancelRequested")
    assert (requested.reason, requested.message) == ("Superseded", "task network-2 takes its place")
    assert write.status.cancel == model.CancelStatus(by="Superseded", superseded_by="network-2", requested_at=b.at(0))


def test_it_is_sent_once_on_each_connection_also_when_the_newer_task_is_gone_since() -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    s = after(s, decide(s, NOW))
    assert decide(s, NOW) == Decision()
    again = replace(s, session=sparing(), superseded_by="")
    assert decide(again, NOW) == Decision((Send(POD_UID, a_supersede()),))


def test_a_run_that_was_not_started_yet_is_not_started_any_more() -> None:
    fresh = replace(sparing(), runs=frozenset(), is_used=False)
    actions = decide(a_snapshot(session=fresh, superseded_by="network-2"), NOW).actions
    assert [type(a) for a in actions] == [ReserveAgent, WriteStatus, Send]
    assert actions[2] == Send(POD_UID, a_supersede())


def test_an_agent_that_would_end_an_apply_for_it_is_asked_for_nothing() -> None:
    s = a_snapshot(task=b.a_given_task(), session=b.holding(), superseded_by="network-2", report=a_report(Step.PLAN))
    decision = decide(s, NOW)
    assert [type(a) for a in decision.actions] == [WriteStatus]
    assert the_status(decision).cancel is None
    start = decide(a_snapshot(superseded_by="network-2"), NOW).actions[-1]
    assert isinstance(start, Send)
    assert isinstance(start.command, Start)


@pytest.mark.parametrize("session", [None, sparing()], ids=["not connected", "connected"])
def test_a_run_that_is_known_to_apply_is_left_alone(session: model.Session | None) -> None:
    s = a_snapshot(task=a_task(status=b.a_status("Applying")), session=session, superseded_by="network-2")
    for report in (None, a_report(Step.APPLY)):
        decision = decide(replace(s, report=report), NOW)
        assert not any(isinstance(a, Send) for a in decision.actions)
        assert the_status(decision).cancel is None


def asked_to_make_way() -> Snapshot:
    s = a_snapshot(task=a_task(status=b.a_status("Planning")), session=sparing(), superseded_by="network-2")
    return after(s, decide(s, NOW))


def test_a_run_whose_agent_makes_way_is_cancelling_and_ends_as_superseded() -> None:
    s = replace(asked_to_make_way(), report=SUPERSEDED_PLAN)
    cancelling = the_status(decide(s, NOW + 1))
    assert cancelling.phase == model.CANCELLING
    assert cancelling.cancel is not None
    assert (cancelling.cancel.sent_at, cancelling.cancel.rung) == (b.at(1), "Interrupt")
    final = b.a_final_report(Outcome.CANCELLED, cancel=SUPERSEDED_PLAN.report.cancel)
    s = replace(after(s, decide(s, NOW + 1)), report=final)
    ended = the_status(decide(s, NOW + 2))
    assert ended.cancel is not None
    assert (ended.phase, ended.cancel.by, ended.cancel.superseded_by) == ("Cancelled", "Superseded", "network-2")


def test_a_run_whose_agent_applies_already_goes_on_and_says_that_it_was_too_late() -> None:
    s = replace(asked_to_make_way(), report=a_report(Step.APPLY, message="terraform apply"))
    applying = the_status(decide(s, NOW + 1))
    assert (applying.phase, applying.message) == ("Applying", "terraform apply")
    requested = next(c for c in applying.conditions if c.type == "CancelRequested")
    assert (requested.reason, requested.message) == ("TooLate", "task network-2 takes its place; it came too late")
    reconnected = replace(after(s, decide(s, NOW + 1)), session=sparing())
    assert decide(reconnected, NOW + 2) == Decision(), "it is not asked again"
    ended = the_status(decide(replace(s, report=b.a_final_report()), NOW + 3))
    assert ended.phase == "Succeeded"


@pytest.mark.parametrize("told", [None, b.a_cancel_report(received_s=0.0)], ids=["not told", "told"])
def test_who_cancels_an_apply_that_was_spared_is_named_as_who_did(told: Any) -> None:
    spared = replace(asked_to_make_way(), report=a_report(Step.APPLY))
    spared = after(spared, decide(spared, NOW + 1))
    by_user = a_task(status=spared.task.status, cancel=True, generation=2)
    s = replace(spared, task=by_user, report=a_report(Step.APPLY, cancel=told))
    decision = decide(s, NOW + 2)
    assert any(isinstance(a, Send) and a.command == b.a_cancel() for a in decision.actions)
    cancelling = the_status(decision)
    assert cancelling.phase == model.CANCELLING
    assert cancelling.cancel is not None
    assert (cancelling.cancel.by, cancelling.cancel.superseded_by) == ("User", "")


def test_who_cancels_an_apply_that_was_spared_just_as_it_ends_is_named_too() -> None:
    by_user = a_task(status=asked_to_make_way().task.status, cancel=True, generation=2)
    ended = the_status(decide(a_snapshot(task=by_user, session=sparing(), report=b.a_final_report()), NOW + 2))
    assert ended.cancel is not None
    assert (ended.phase, ended.cancel.by) == ("Succeeded", "User")


def test_a_run_that_ended_for_a_newer_task_says_so_also_where_that_is_not_on_record_any_more() -> None:
    final = b.a_final_report(Outcome.CANCELLED, cancel=SUPERSEDED_PLAN.report.cancel)
    cancel = the_status(decide(a_snapshot(session=sparing(), report=final), NOW)).cancel
    assert cancel is not None
    assert cancel.by == "Superseded"


def test_a_timeout_that_came_before_the_newer_task_is_named_as_what_it_was() -> None:
    told = b.a_cancel_report(Rung.INTERRUPT, reason="Timeout", received_s=5.0)  # type: ignore[arg-type]
    s = replace(asked_to_make_way(), session=sparing(), report=a_report(Step.PLAN, cancel=told))
    decision = decide(s, NOW)
    assert not any(isinstance(action, Send) for action in decision.actions)
    cancel = the_status(decision).cancel
    assert cancel is not None
    assert (cancel.by, cancel.superseded_by) == ("Timeout", "")


# ---- the object after the end


def an_ended(**changes: Any) -> Snapshot:
    """A second ago."""
    return a_snapshot(task=a_task(status=b.a_terminal_status(), **changes), claimed=False)


def test_an_ended_task_is_deleted_when_its_time_is_over_and_stays_where_it_has_none() -> None:
    s = an_ended(ttl_seconds_after_finished=60)
    assert decide(s, NOW) == Decision(wake_after_s=59.0)
    assert decide(s, NOW + 59) == Decision((DeleteTask(s.task),))
    assert decide(an_ended(), NOW + 1e9) == Decision()


def test_a_task_is_deleted_only_after_its_claim_was_released() -> None:
    s = replace(an_ended(ttl_seconds_after_finished=1), claim=a_claim(), agent=b.ended_pod)
    assert [type(a) for a in decide(s, NOW).actions] == [ReleaseClaim, DeleteTask]


def test_a_task_that_has_not_ended_is_not_deleted_however_old_it_is() -> None:
    task = a_task(ttl_seconds_after_finished=1, status=b.a_status("Applying"))
    s = a_snapshot(task=task, session=b.holding(), report=a_report())
    assert not any(isinstance(a, DeleteTask) for a in decide(s, NOW + 1e9).actions)
