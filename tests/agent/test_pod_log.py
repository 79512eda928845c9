"""The pod's log: redacted, cut, and never a brake."""

from __future__ import annotations

import logging
import os
import select

from terrahalt_agent.adapters.pod_log import MAX_WAITING_CHARS, PodLog, PodLogHandler
from terrahalt_agent.core.redaction import Redactor


def test_lines_are_written_in_order_without_secrets() -> None:
    reader, writer = os.pipe()
    redactor = Redactor()
    redactor.add(["hunter2hunter2"])
    log = PodLog(redactor, writer)
    log.line("first hunter2hunter2")
    log.line("second")
    log.flush(5)
    assert os.read(reader, 1000) == b"first [redacted]\nsecond\n"
    os.close(reader)
    os.close(writer)


def test_a_secret_at_the_cut_of_a_long_line_is_not_shown_by_half() -> None:
    reader, writer = os.pipe()
    redactor = Redactor()
    redactor.add(["hunter2hunter2"])
    log = PodLog(redactor, writer)
    log.line("x" * 15_993 + "hunter2hunter2")
    log.flush(5)
    shown = os.read(reader, 100_000)
    assert b"hunter" not in shown
    assert shown.endswith(b"x[redacted] ...\n")
    os.close(reader)
    os.close(writer)


def test_a_reader_that_stalls_holds_up_nobody_and_what_was_dropped_is_said() -> None:
    reader, writer = os.pipe()
    log = PodLog(Redactor(), writer)
    # Nobody reads yet: one part is being written, one waits, and a third can only be dropped.
    for _ in range(3 * MAX_WAITING_CHARS // 10_000):
        log.line("x" * 10_000)
    seen = b""
    while b"lines were dropped" not in seen:
        assert select.select([reader], [], [], 20)[0], "all was read, and nothing was said to be dropped"
        seen = (seen + os.read(reader, 1_000_000))[-20_000:]
    assert b"lines were dropped, they came faster than this log was read" in seen
    os.close(reader)
    log.line("nobody reads this")
    log.flush(1)
    os.close(writer)


def test_what_was_passed_over_is_said_with_the_next_line() -> None:
    reader, writer = os.pipe()
    log = PodLog(Redactor(), writer)
    log.pass_over(0)
    log.line("first")
    log.flush(5)
    log.pass_over(600)
    log.pass_over(400)
    log.line("second")
    log.flush(5)
    said = b"terrahalt: 1000 lines were dropped, they came faster than this log was read"
    assert os.read(reader, 1000) == b"first\nsecond\n" + said + b"\n"
    os.close(reader)
    os.close(writer)


def test_the_agents_own_lines_are_marked_and_never_run_together() -> None:
    reader, writer = os.pipe()
    log = PodLog(Redactor(), writer)
    record = logging.LogRecord("a", logging.INFO, "", 0, "run %s: %s", ("01J", "terraform init"), None)
    PodLogHandler(log).emit(record)
    log.flush(5)
    assert os.read(reader, 1000) == b"terrahalt: run 01J: terraform init\n"
    os.close(reader)
    os.close(writer)
