"""What the log of terraform means, and how a person reads it."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_agent.core.terraform_log import MAX_TEXT_CHARS, is_chatter, parse, readable
from tests.agent.builders import (
    ADDRESS,
    a_line,
    an_error,
    begun,
    completed,
    errored,
    facts,
    hook,
    interrupt_received,
    operation_canceled,
    summary,
    two_interrupts,
    version,
)


def test_an_operation_is_open_from_its_start_to_its_end() -> None:
    assert facts(begun()).open_addresses == (ADDRESS,)
    assert not facts(begun()).is_idle
    for end in (completed(), errored()):
        assert facts(begun(), end).open_addresses == ()
        assert facts(begun(), end).is_idle


def test_a_replacement_is_two_operations_on_one_address() -> None:
    lines = [hook("apply_start", ADDRESS, "delete"), hook("apply_start", ADDRESS, "create")]
    assert facts(*lines).open_addresses == (ADDRESS,)
    assert facts(*lines, hook("apply_complete", ADDRESS, "delete")).open_addresses == (ADDRESS,)


def test_reading_data_is_an_operation_that_changes_nothing() -> None:
    read = hook("apply_start", "data.x.y", "read")
    assert facts(read).hook_seen
    assert not facts(read).mutated
    assert facts(read).open_addresses == ()
    assert not facts(read).is_idle
    assert facts(read, hook("apply_complete", "data.x.y", "read")).done == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("refresh_start", "refresh_complete"),
        ("ephemeral_op_start", "ephemeral_op_complete"),
        ("ephemeral_action_started", "ephemeral_action_complete"),
    ],
)
def test_refreshing_is_not_changing_but_keeps_it_busy(start: str, end: str) -> None:
    assert facts(hook(start)).hook_seen
    assert not facts(hook(start)).is_idle
    assert not facts(hook(start)).mutated
    assert facts(hook(start), hook(end)).is_idle


def test_the_walk_has_not_begun_with_the_plan_that_apply_repeats() -> None:
    planned = a_line("planned_change", "terraform_data.a: Plan to create")
    assert not facts(version(), planned).hook_seen
    assert facts(version(), planned).version_seen


def test_an_error_is_early_only_before_the_interrupt() -> None:
    assert facts(errored(), interrupt_received()).failed_before_interrupt
    assert facts(an_error(), interrupt_received()).failed_before_interrupt
    late = facts(interrupt_received(), errored(), an_error())
    assert late.failed
    assert not late.failed_before_interrupt


def test_an_error_of_what_was_stopped_may_be_logged_before_the_interrupt_that_stopped_it() -> None:
    stopping = a_line("log", "Stopping operation...")
    late = facts(stopping, errored(), interrupt_received(), an_error("execution halted"))
    assert late.interrupted
    assert not late.failed_before_interrupt
    assert facts(errored(), stopping, interrupt_received()).failed_before_interrupt


NO_ANSWER = an_error(
    "Plugin did not respond", detail="failed to respond to the (*GRPCProvider).ApplyResourceChange call"
)


def test_a_change_whose_provider_died_is_one_that_no_error_names() -> None:
    refused = an_error("no such zone", address="x.refused")
    died = facts(begun("x.refused"), begun(), errored("x.refused"), errored(), NO_ANSWER, refused)
    assert died.is_unanswered
    assert died.unanswered_addresses == (ADDRESS,)


def test_a_provider_that_died_over_a_plan_or_answered_leaves_no_change_in_doubt() -> None:
    for error in (an_error("no such zone"), an_error("Plugin did not respond", detail="the ReadResource call")):
        answered = facts(begun(), errored(), error)
        assert (answered.is_unanswered, answered.unanswered_addresses) == (False, ())


def test_the_error_that_is_told_is_that_of_the_resource_that_failed_first() -> None:
    causes = [an_error("the cause", address="x.first"), an_error("stopped", address="x.second"), an_error("halted")]
    for order in itertools.permutations(causes):
        failed = facts(errored("x.first"), interrupt_received(), errored("x.second"), *order)
        assert failed.error_text.startswith("the cause")


def test_interrupts_are_told_apart() -> None:
    once, twice = facts(interrupt_received()), facts(interrupt_received(), two_interrupts(), operation_canceled())
    assert (once.interrupted, once.twice_interrupted, once.canceled) == (True, False, False)
    assert (twice.interrupted, twice.twice_interrupted, twice.canceled) == (True, True, True)


def test_a_local_exec_that_prints_the_words_interrupts_nothing() -> None:
    printed = a_line("provision_progress", "x (local-exec): Interrupt received", hook={"resource": {"addr": ADDRESS}})
    assert not facts(printed).interrupted


def test_what_could_not_be_saved_or_unlocked_is_seen() -> None:
    assert facts(an_error("Failed to save state")).save_failed
    assert facts(an_error("Error releasing the state lock")).unlock_failed


def test_a_state_that_was_locked_and_could_not_be_read_may_be_locked_still() -> None:
    assert facts(an_error("error loading state: Unable to access object")).unlock_failed


def test_a_backend_that_could_not_unlock_the_workspace_it_has_made_is_seen() -> None:
    detail = "Error unlocking S3 state. Lock ID: x\nYou may have to force-unlock this state in order to use it again."
    assert facts(an_error("Error loading state", detail=detail)).unlock_failed


ID = "11111111-2222-4333-8444-555555555555"
SINCE = f"since 2026-05-01 12:00:00 UTC (ID {ID})"
INFO = """
Error message: {error}
Lock Info:
  ID:        11111111-2222-4333-8444-555555555555
  Path:      states/network.tfstate
  Who:       01JOTHER@agent-7
  Created:   2026-05-01 12:00:00.5 +0000 UTC
"""


@pytest.mark.parametrize(
    ("detail", "holder"),
    [
        (INFO.format(error="PreconditionFailed"), f"01JOTHER@agent-7 {SINCE}"),
        ("Error message: Failed to lock: EOF", ""),
        (
            INFO.format(error="HTTP remote state already locked: ID=some-id"),
            "somebody whom the backend does not name (ID some-id)",
        ),
        (INFO.format(error=f"HTTP remote state already locked: ID={ID}"), f"01JOTHER@agent-7 {SINCE}"),
    ],
    ids=["who is shown", "no answer", "http, another's", "http, our own attempt"],
)
def test_who_holds_the_lock_that_could_not_be_had_is_known_as_far_as_terraform_knows(detail: str, holder: str) -> None:
    seen = facts(an_error("Error acquiring the state lock", detail=detail))
    assert (seen.lock_refused, seen.lock_holder) == (True, holder)


def test_a_workspace_that_is_not_there_yet_is_seen() -> None:
    assert facts(an_error('Currently selected workspace "network" does not exist')).workspace_missing
    assert not facts(an_error('Module "network" does not exist')).workspace_missing


def test_the_summary_counts() -> None:
    counted = facts(summary()).summary
    assert counted is not None
    assert (counted.add, counted.change, counted.destroy) == (1, 0, 0)


def test_the_first_error_is_the_one_to_read_and_is_cut() -> None:
    text = facts(an_error("x" * 600), an_error("second")).error_text
    assert (len(text), text[-3:]) == (500, "...")
    where = {"filename": "main.tf", "start": {"line": 7}}
    assert (
        facts(an_error("no", range=where, address="a.b", detail="a\n\nb")).error_text == "no (a.b, main.tf line 7): a b"
    )


def test_without_a_diagnostic_the_plain_last_lines_are_the_error() -> None:
    lines = [parse(f"line {n}".encode()) for n in range(9)]
    assert facts(*lines).error_text == "line 4 line 5 line 6 line 7 line 8"


def test_a_warning_is_no_error() -> None:
    assert not facts(a_line("diagnostic", "w", diagnostic={"severity": "warning", "summary": "w"})).failed


@given(st.binary(max_size=300))
def test_any_bytes_are_a_line(raw: bytes) -> None:
    readable(parse(raw))
    facts(parse(raw), parse(b"{" + raw))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["type", "hook", "diagnostic", "changes", "outputs", "@message", "range"]), x
            )
        ),
    )
)
def test_json_of_any_other_shape_is_plain_text(value: object) -> None:
    facts(parse(msgspec.json.encode(value)))


def test_deep_nesting_is_plain_text() -> None:
    assert parse(b'{"type":"x","outputs":' + b"[" * 100_000).type == ""


def test_a_line_of_a_megabyte_keeps_its_meaning() -> None:
    outputs = {"big": {"sensitive": False, "value": "x" * 1_000_000}}
    line = a_line("outputs", "Outputs: 1", outputs=outputs)
    assert line.type == "outputs"
    assert max(len(text) for text in readable(line)) <= MAX_TEXT_CHARS


def test_people_read_messages_without_colours_and_diagnostics_with_their_place() -> None:
    assert readable(a_line("init_output", "\x1b[0m\x1b[32m\nSuccessfully configured\n\n")) == [
        "Successfully configured"
    ]
    where = {"filename": "main.tf", "start": {"line": 7}}
    assert readable(an_error("it broke", range=where, detail="because\n\nof this")) == [
        "Error: it broke (main.tf line 7)",
        "  because",
        "  of this",
    ]


def test_outputs_are_shown_unless_they_are_sensitive() -> None:
    outputs = {"a": {"sensitive": False, "value": [1]}, "b": {"sensitive": True, "value": "hunter2"}, "c": {"value": 1}}
    assert readable(a_line("outputs", "Outputs: 3", outputs=outputs)) == [
        "Outputs: 3",
        "  a = [1]",
        "  b = (sensitive)",
        "  c = (sensitive)",
    ]


def test_nothing_commands_the_terminal_of_whoever_reads_an_error() -> None:
    stream = facts(an_error("it \x1b]0;owned\x07 broke\0", detail="\x9b2J gone"))
    assert stream.error_text == "it \ufffd]0;owned\ufffd broke\ufffd: \ufffd2J gone"


def test_only_what_a_provisioner_prints_is_chatter() -> None:
    printed = b'{"@message":"a: (local-exec): y","hook":{"resource":{"addr":"a"}},"type":"provision_progress"}'
    assert is_chatter(printed)
    forged = b'{"@message":"a: (local-exec): \\"type\\":\\"provision_progress\\"}","type":"apply_start"}'
    assert not is_chatter(forged)
    assert not is_chatter(b'{"@message":"x","type":"apply_complete"}')
