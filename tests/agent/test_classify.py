"""Each row of the table, and what it says of state and message."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_agent.core.classify import ROWS, Ending, Failure, classify
from terrahalt_agent.core.events import AftermathChecked, ErroredState, TornState
from terrahalt_protocol.messages import (
    Action,
    CancelReason,
    Lock,
    LockCondition,
    Outcome,
    StateCondition,
    Step,
)
from tests.agent.builders import (
    ADDRESS,
    FREE,
    an_error,
    begun,
    errored,
    facts,
    interrupt_received,
    summary,
    two_interrupts,
    version,
)

USER = CancelReason.USER
LEFT = AftermathChecked(FREE)
STOPPED = facts(begun(), interrupt_received(), errored())


def an_ending(**fields: Any) -> Ending:
    defaults: dict[str, Any] = {"engine": "terraform", "action": Action.APPLY, "step": Step.APPLY, "facts": facts()}
    return Ending(**(defaults | fields))


CASES: list[tuple[str, dict[str, Any], Outcome, str, StateCondition]] = [
    (
        "could not be prepared or started",
        {"failure": Failure("SourceInvalid", "no"), "step": Step.PREPARE},
        Outcome.FAILED,
        "SourceInvalid",
        StateCondition.COMPLETE,
    ),
    (
        "the last step did its work",
        {"exit_code": 0, "facts": facts(summary())},
        Outcome.SUCCEEDED,
        "Applied",
        StateCondition.COMPLETE,
    ),
    (
        "the last step did its work",
        {
            "exit_code": 0,
            "facts": facts(begun(), interrupt_received(), summary()),
            "cancel": USER,
            "was_interrupted": True,
        },
        Outcome.SUCCEEDED,
        "Applied",
        StateCondition.COMPLETE,
    ),
    (
        "the last step did its work",
        {"exit_code": 0, "facts": facts(summary("plan")), "action": Action.PLAN, "step": Step.PLAN},
        Outcome.SUCCEEDED,
        "Planned",
        StateCondition.COMPLETE,
    ),
    (
        "its plan was kept for a person",
        {
            "exit_code": 0,
            "facts": facts(summary("plan")),
            "step": Step.PLAN,
            "has_kept_plan": True,
        },
        Outcome.FAILED,
        "AwaitingApproval",
        StateCondition.COMPLETE,
    ),
    (
        "cancelled before a process or between two steps",
        {"step": Step.PREPARE, "cancel": USER},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.COMPLETE,
    ),
    (
        "cancelled before a process or between two steps",
        {"exit_code": 0, "step": Step.PLAN, "facts": facts(summary("plan")), "cancel": CancelReason.DELETION},
        Outcome.CANCELLED,
        "CancelledByDeletion",
        StateCondition.COMPLETE,
    ),
    (
        "an error came before our signal",
        {
            "exit_code": 1,
            "facts": facts(begun(), errored(), interrupt_received()),
            "cancel": USER,
            "was_interrupted": True,
        },
        Outcome.FAILED,
        "ApplyFailed",
        StateCondition.COMPLETE,
    ),
    (
        "an error came before our signal",
        {
            "exit_code": 1,
            "step": Step.INIT,
            "facts": facts(an_error()),
            "cancel": USER,
            "was_interrupted": True,
            "failed_before_signal": True,
        },
        Outcome.FAILED,
        "InitFailed",
        StateCondition.COMPLETE,
    ),
    (
        "killed by us",
        {"exit_code": -9, "facts": facts(version()), "cancel": USER, "was_killed": True},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.COMPLETE,
    ),
    (
        "killed by us",
        {"exit_code": -9, "facts": facts(begun()), "cancel": USER, "was_killed": True},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.INCOMPLETE,
    ),
    (
        "killed by us",
        {"exit_code": None, "facts": facts(begun()), "cancel": USER, "was_killed": True},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.INCOMPLETE,
    ),
    (
        "ended by our first signal, before it had a handler",
        {"exit_code": -2, "step": Step.PLAN, "cancel": USER, "was_interrupted": True},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.COMPLETE,
    ),
    (
        "stopped after our SIGINT",
        {"exit_code": 1, "facts": STOPPED, "cancel": CancelReason.POD_TERMINATION, "was_interrupted": True},
        Outcome.CANCELLED,
        "CancelledByPodTermination",
        StateCondition.COMPLETE,
    ),
    (
        "stopped after our SIGINT",
        {"exit_code": 1, "facts": STOPPED, "cancel": CancelReason.TIMEOUT, "was_interrupted": True},
        Outcome.FAILED,
        "TimedOut",
        StateCondition.COMPLETE,
    ),
    (
        "stopped after our SIGINT",
        {
            "exit_code": 1,
            "facts": facts(begun(), interrupt_received(), two_interrupts()),
            "cancel": USER,
            "was_interrupted": True,
        },
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.INCOMPLETE,
    ),
    (
        "stopped after our SIGINT",
        {
            "exit_code": 1,
            "facts": STOPPED,
            "cancel": USER,
            "was_interrupted": True,
            "providers_killed": True,
            "open_when_forced": (ADDRESS,),
        },
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.INCOMPLETE,
    ),
    (
        "stopped after our SIGINT",
        {
            "exit_code": 1,
            "step": Step.INIT,
            "facts": facts(an_error("interrupted")),
            "cancel": USER,
            "was_interrupted": True,
        },
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.COMPLETE,
    ),
    (
        "killed, and not by us",
        {"exit_code": -9, "facts": facts(begun())},
        Outcome.FAILED,
        "TerraformKilled",
        StateCondition.INCOMPLETE,
    ),
    (
        "killed, and not by us",
        {"exit_code": -9, "step": Step.PLAN, "facts": facts(begun())},
        Outcome.FAILED,
        "TerraformKilled",
        StateCondition.COMPLETE,
    ),
    (
        "crashed",
        {"exit_code": -2, "step": Step.PLAN},
        Outcome.FAILED,
        "TerraformCrashed",
        StateCondition.COMPLETE,
    ),
    *[
        (
            "crashed",
            {"exit_code": code, "facts": facts(begun())},
            Outcome.FAILED,
            "TerraformCrashed",
            StateCondition.INCOMPLETE,
        )
        for code in (2, 11, -11, -6, -13)
    ],
    (
        "lost its providers to us",
        {"exit_code": 1, "facts": facts(an_error()), "cancel": USER, "providers_killed": True},
        Outcome.CANCELLED,
        "CancelledByUser",
        StateCondition.COMPLETE,
    ),
    (
        "state not saved",
        {"exit_code": 1, "facts": facts(begun(), an_error("Failed to save state"))},
        Outcome.FAILED,
        "NotPersisted",
        StateCondition.NOT_PERSISTED,
    ),
    (
        "failed",
        {"exit_code": 1, "step": Step.PLAN, "facts": facts(an_error())},
        Outcome.FAILED,
        "PlanFailed",
        StateCondition.COMPLETE,
    ),
    (
        "failed",
        {"exit_code": 0, "step": Step.PLAN, "facts": facts(version())},
        Outcome.FAILED,
        "PlanFailed",
        StateCondition.COMPLETE,
    ),
    (
        "failed",
        {"exit_code": 1, "facts": facts(begun(), errored()), "cancel": USER, "was_interrupted": True},
        Outcome.FAILED,
        "ApplyFailed",
        StateCondition.COMPLETE,
    ),
    (
        "failed",
        {"exit_code": 1, "facts": facts(an_error()), "cancel": USER},
        Outcome.FAILED,
        "ApplyFailed",
        StateCondition.COMPLETE,
    ),
]


@pytest.mark.parametrize(("observed", "fields", "outcome", "reason", "state"), CASES)
def test_each_ending_has_its_row(
    observed: str, fields: dict[str, Any], outcome: Outcome, reason: str, state: StateCondition
) -> None:
    ending = an_ending(**fields)
    assert next(row.observed for row in ROWS if row.holds(ending)) == observed
    result = classify(ending, LEFT)
    assert (result.outcome, result.reason, result.state) == (outcome, reason, state)
    assert result.message


def test_a_provider_that_died_over_a_change_leaves_a_state_that_may_miss_it() -> None:
    died = an_error("Plugin did not respond", detail="the ApplyResourceChange call")
    for fields in ({}, {"cancel": USER, "was_interrupted": True}):
        result = classify(an_ending(exit_code=1, facts=facts(begun(), errored(), died), **fields), LEFT)
        assert (result.state, result.forced) == (StateCondition.INCOMPLETE, False)
        assert result.open_addresses == (ADDRESS,)
    planned = an_ending(exit_code=1, step=Step.PLAN, facts=facts(died))
    assert classify(planned, LEFT).state is StateCondition.COMPLETE


KILLED: dict[str, Any] = {"exit_code": -9, "was_killed": True}
DIED = facts(begun(), errored(), an_error("Plugin did not respond", detail="the ApplyResourceChange call"))


@pytest.mark.parametrize(
    ("fields", "is_clean", "is_forced", "is_torn"),
    [
        (KILLED | {"killed_at_gate": True, "facts": facts(version())}, True, False, False),
        (KILLED | {"killed_at_gate": True, "facts": facts(begun())}, False, True, True),
        (KILLED | {"facts": facts(version())}, False, True, True),
        ({"exit_code": 1, "facts": facts(begun(), two_interrupts())}, False, True, True),
        ({"exit_code": 1, "facts": STOPPED, "open_when_forced": (ADDRESS,)}, False, True, True),
        ({"exit_code": 1, "facts": DIED}, False, False, True),
        ({"exit_code": 1, "facts": STOPPED}, False, False, False),
        *(({"exit_code": code}, False, False, True) for code in (None, 2, 11, -9)),
        *(({"exit_code": code}, False, False, False) for code in (0, 1)),
    ],
)
def test_a_kill_before_the_first_operation_is_clean_and_what_is_cut_off_is_torn(
    fields: dict[str, Any], is_clean: bool, is_forced: bool, is_torn: bool
) -> None:
    ending = an_ending(**fields)
    assert (ending.is_clean, ending.is_forced, ending.is_torn) == (is_clean, is_forced, is_torn)
    assert (ending.may_have_torn_state, an_ending(step=Step.PLAN, **fields).may_have_torn_state) == (is_torn, False)


def test_a_state_that_was_not_saved_may_be_torn_too() -> None:
    assert an_ending(exit_code=1, facts=facts(an_error("Failed to save state"))).may_have_torn_state


def test_of_a_state_that_is_whole_no_address_is_told() -> None:
    result = classify(an_ending(exit_code=1, facts=facts(begun(), an_error())), LEFT)
    assert (result.state, result.open_addresses, result.open_address_count) == (StateCondition.COMPLETE, (), 0)


def test_no_row_is_without_a_case() -> None:
    assert {row.observed for row in ROWS} == {observed for observed, *_ in CASES}


def test_a_state_that_was_left_behind_makes_a_failure_not_persisted_and_tells_where() -> None:
    ending = an_ending(exit_code=1, facts=facts(begun(), an_error("backend is gone")))
    result = classify(ending, AftermathChecked(FREE, ErroredState("/module/errored.tfstate", fetch="kubectl get it")))
    assert (result.reason, result.state) == ("NotPersisted", StateCondition.NOT_PERSISTED)
    assert "get it with `kubectl get it` and push it with `terraform state push`, never with -force" in result.message
    result = classify(ending, AftermathChecked(FREE, ErroredState("/module/errored.tfstate", problem="no room")))
    assert "left it in /module/errored.tfstate of this pod, and it could not be kept: no room" in result.message


def test_a_state_that_can_not_be_read_any_more_is_corrupt_and_the_way_back_is_told() -> None:
    ending = an_ending(exit_code=-9, facts=facts(begun()))
    for left, told in (
        (TornState("drop it"), "remove what is left of it with `drop it`; there was none before this apply"),
        (
            TornState("drop it", "get it"),
            "get the one from before this apply with `get it`, remove what is left of it with `drop it`, "
            "push with `terraform state push`",
        ),
    ):
        result = classify(ending, AftermathChecked(FREE, None, left))
        assert (result.state, result.open_addresses) == (StateCondition.CORRUPT, (ADDRESS,))
        assert result.message.endswith(f"what is saved can't be read any more: {told}")


def test_what_terraform_could_not_save_is_a_better_way_back_than_what_was_before() -> None:
    ending = an_ending(exit_code=1, facts=facts(begun(), an_error("Failed to save state")))
    errored = ErroredState("/module/errored.tfstate", fetch="kubectl get it")
    result = classify(ending, AftermathChecked(FREE, errored, TornState("drop it", "get the old one")))
    assert result.state is StateCondition.CORRUPT
    assert "get it with `kubectl get it`" in result.message
    assert result.message.endswith("remove what is left of it with `drop it` before that push")
    assert "the old one" not in result.message


def test_a_cancelled_run_that_could_not_save_its_state_stays_cancelled_and_says_so() -> None:
    ending = an_ending(exit_code=1, facts=STOPPED, cancel=USER, was_interrupted=True)
    result = classify(ending, AftermathChecked(FREE, ErroredState("/x")))
    assert (result.outcome, result.state) == (Outcome.CANCELLED, StateCondition.NOT_PERSISTED)


def test_at_most_50_addresses_are_named_and_all_are_counted() -> None:
    lines = [begun(f"terraform_data.a[{n}]") for n in range(70)]
    result = classify(an_ending(exit_code=-9, facts=facts(*lines), cancel=USER, was_killed=True), LEFT)
    assert (len(result.open_addresses), result.open_address_count) == (50, 70)


def test_a_held_lock_is_named_in_the_message() -> None:
    lock = Lock(condition=LockCondition.HELD, id="1", who="run@pod", command="kubectl ...")
    result = classify(an_ending(exit_code=1, facts=facts(an_error())), AftermathChecked(lock))
    assert result.message.endswith("the state's lock is still held by run@pod")


def test_a_log_that_was_not_read_to_its_end_leaves_the_state_unknown() -> None:
    assert classify(an_ending(exit_code=1, is_certain=False), LEFT).state is StateCondition.UNKNOWN


def test_a_foreign_kill_is_told_apart_from_ours() -> None:
    result = classify(an_ending(exit_code=-9, facts=facts(begun())), LEFT)
    assert result.message.startswith("terraform apply was ended by SIGKILL, which this agent did not send")
    assert (result.forced, result.open_addresses) == (False, (ADDRESS,))
    assert "the state may miss what terraform was doing, and what it had done since it last saved it" in result.message


def test_a_terraform_that_was_interrupted_twice_may_have_saved_nothing() -> None:
    cut_short = facts(begun(), interrupt_received(), two_interrupts(), errored())
    result = classify(an_ending(exit_code=1, facts=cut_short, cancel=USER, was_interrupted=True), LEFT)
    assert (result.state, result.forced) == (StateCondition.INCOMPLETE, True)
    assert "the state may miss what terraform was doing, and what it had done since it last saved it" in result.message
