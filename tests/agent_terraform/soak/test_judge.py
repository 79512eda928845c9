"""The judge of random runs lets nothing pass that was not done to a run. Needs no engine."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from terrahalt_protocol.messages import Action, Lock, LockCondition, Outcome, Report, Result, StateCondition, Step
from tests.agent_terraform.soak.judge import violations
from tests.agent_terraform.soak.plan import Command, Happening, Moment, PlannedRun, Shape, Thing, Trouble
from tests.agent_terraform.soak.runs import Ran, Seen

SHAPE = Shape((Thing("a", (), {}), Thing("b", (), {})), (), (Command("c", "quick", ""),), 0)
NOW = Moment(Step.APPLY, 0.0)
KNOWN = frozenset[str]()


def seen(
    *objects: str,
    saved: tuple[str, ...] | None = None,
    serial: int = 1,
    lock_id: str = "",
    made: int = 0,
    marks: str = "c",
) -> Seen:
    """`saved`: None is the same as in the cloud."""
    resources = [{"type": "trial_thing", "name": n, "instances": [{}]} for n in (objects if saved is None else saved)]
    resources.append({"type": "terraform_data", "name": "c", "instances": [{}]})
    state = json.dumps({"lineage": "l", "serial": serial, "resources": resources})
    return Seen(frozenset(objects), Counter(create=made), frozenset(marks), state.encode(), lock_id)


def a_report(**fields: Any) -> Report:
    defaults: dict[str, Any] = {
        "outcome": Outcome.SUCCEEDED,
        "reason": "Applied",
        "message": "done",
        "exit_code": 0,
        "state": StateCondition.COMPLETE,
        "lock": Lock(condition=LockCondition.RELEASED),
    }
    result = Result(**(defaults | fields))
    return Report(run_id="r", task_uid="t", boot_id="b", sequence=1, step=Step.SWEEP, result=result)


def a_run(after: Seen, report: Report | None, *done: Trouble, **fields: Any) -> Ran:
    planned = PlannedRun(Action.APPLY, SHAPE, (), 30.0)
    happenings = [Happening(NOW, trouble) for trouble in done]
    ran = Ran(planned, seen(), after, after, report, happenings, {"CancelledByUser"} if done else set())
    return replace(ran, **({"sealed": report, "agent_ended": 0, "has_apply": True} | fields))


CANCELLED = {"outcome": Outcome.CANCELLED, "reason": "CancelledByUser", "exit_code": 1}
KILLED = {"outcome": Outcome.FAILED, "reason": "TerraformKilled", "exit_code": -9}
INCOMPLETE = {"state": StateCondition.INCOMPLETE, "open_addresses": ("trial_thing.a",)}
CORRUPT = {"state": StateCondition.CORRUPT}
HELD = {"lock": Lock(condition=LockCondition.HELD, id="1")}
FOREIGN = seen(lock_id="foreign")

TRUE = {
    "a success": a_run(seen("a", "b"), a_report()),
    "a cancel": a_run(seen("a"), a_report(**CANCELLED), Trouble.CANCEL),
    "a provider killed": a_run(seen("a", saved=()), a_report(**CANCELLED, **INCOMPLETE), Trouble.FORCE),
    "terraform killed, lock held": a_run(
        seen(lock_id="1"), a_report(**KILLED, **HELD), Trouble.KILL_TERRAFORM
    ),
    "a torn state": a_run(replace(seen(), state=b"{"), a_report(**KILLED, **CORRUPT), Trouble.KILL_TERRAFORM),
    "all killed": a_run(seen("a", saved=(), lock_id="1"), None, Trouble.KILL_ALL),
}  # fmt: skip

LIES = {
    "it has no end": a_run(seen(), None),
    "Succeeded, and the cloud has": a_run(seen("a"), a_report()),
    "Succeeded, and the state has": a_run(seen("a", "b", saved=("a",)), a_report()),
    "of its commands only": a_run(seen("a", "b", marks=""), a_report()),
    "what was asked is": a_run(seen("a"), a_report(**CANCELLED)),
    "its apply came to its end": a_run(seen("a", "b"), a_report(**CANCELLED | {"exit_code": 0}), Trouble.CANCEL),
    "nothing was done to it": a_run(seen("a"), a_report(**KILLED), Trouble.CANCEL),
    "cloud and state differ": a_run(seen("a", saved=()), a_report(**CANCELLED), Trouble.CANCEL),
    "differ in ['c']": a_run(seen("a", marks=""), a_report(**CANCELLED), Trouble.CANCEL),
    "differ in ['b']": a_run(seen("b", saved=()), a_report(**CANCELLED, **INCOMPLETE), Trouble.FORCE),
    "can't be read": a_run(replace(seen(), state=b"{"), a_report(**KILLED), Trouble.KILL_TERRAFORM),
    "the state was l 1 and is l 0": a_run(seen(serial=0), a_report(**CANCELLED), Trouble.CANCEL),
    "is gone": a_run(seen(), a_report(**CANCELLED), Trouble.CANCEL, before=FOREIGN),
    "the lock of another for its own": a_run(FOREIGN, a_report(**KILLED, **HELD), before=FOREIGN),
    "it says Released": a_run(seen(lock_id="1"), a_report(**KILLED), Trouble.KILL_TERRAFORM),
    "is held, and that is free": a_run(seen(), a_report(**KILLED, **HELD), Trouble.KILL_TERRAFORM),
    "alive when its report came": a_run(seen("a", "b"), a_report(), alive=["sleep 300"]),
    "still at work": a_run(seen("a", "b"), a_report(), at_work=[("create", "a")]),
    "is not its report": a_run(seen("a", "b"), a_report(), sealed=None),
    "its agent ended with None": a_run(seen("a", "b"), a_report(), agent_ended=None),
    "nothing was changed, it says": a_run(
        seen(made=1), a_report(**CANCELLED | {"message": "nothing was changed"}), Trouble.CANCEL
    ),
}  # fmt: skip


@pytest.mark.parametrize("ran", TRUE.values(), ids=list(TRUE))
def test_what_is_true_passes(ran: Ran) -> None:
    assert violations(ran, KNOWN, may_fail=False) == []


@pytest.mark.parametrize("words", LIES)
def test_what_is_not_true_is_told(words: str) -> None:
    found = violations(LIES[words], KNOWN, may_fail=False)
    assert [problem for problem in found if words in problem], found


def test_what_was_told_before_is_no_violation_of_the_next_run() -> None:
    ran = a_run(seen("a", "b", "lost", saved=("a", "b")), a_report())
    assert violations(ran, frozenset({"lost"}), may_fail=False) == []
    assert violations(ran, KNOWN, may_fail=False) != []


def test_a_provider_that_is_told_to_fail_may_fail_a_run() -> None:
    ran = a_run(seen(), a_report(outcome=Outcome.FAILED, reason="ApplyFailed", exit_code=1))
    assert violations(ran, KNOWN, may_fail=True) == []
    assert violations(ran, KNOWN, may_fail=False) != []
