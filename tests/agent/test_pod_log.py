"""The pod's log: redacted, cut, and never a brake."""

from __future__ import annotations

import gzip
import logging
import os
import select

from terrahalt_agent.adapters.pod_log import MAX_WAITING_CHARS, PodLog, PodLogHandler
from terrahalt_agent.core.kept_log import KeptLog
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


def test_what_was_shown_of_a_run_is_what_is_kept_of_it() -> None:
    reader, writer = os.pipe()
    redactor = Redactor()
    redactor.add(["hunter2hunter2"])
    log = PodLog(redactor, writer)
    log.line("of the run before")
    log.flush(5)
    os.read(reader, 1000)
    log.begin()
    log.line("first hunter2hunter2")
    log.line("zweite größte\x1b[2J")
    log.flush(5)
    shown = os.read(reader, 1000)
    assert b"[redacted]" in shown
    assert gzip.decompress(log.packed()) == shown
    os.close(reader)
    os.close(writer)


def test_of_a_long_log_the_beginning_and_the_end_are_kept() -> None:
    log = KeptLog(head_bytes=20, tail_bytes=40)
    lines = [b"line %03d\n" % n for n in range(100)]
    for line in lines:
        log.add(line)
    kept = gzip.decompress(log.packed()).splitlines(keepends=True)
    assert kept[:2] == lines[:2]
    assert kept[3:] == lines[-4:]
    assert b": %d bytes are left out" % (94 * 9) in kept[2]


def test_a_log_that_is_kept_needs_no_more_memory_than_it_may_have() -> None:
    log = KeptLog(head_bytes=1_000, tail_bytes=10_000)
    for n in range(10_000):
        log.add(b"x" * (n % 97) + b"\n")
    assert len(gzip.decompress(log.packed())) < 11_200
    log.begin()
    log.add(b"next\n")
    assert gzip.decompress(log.packed()) == b"next\n"


def test_lines_that_nobody_reads_are_kept_all_the_same() -> None:
    reader, writer = os.pipe()
    log = PodLog(Redactor(), writer)
    log.line("x" * 10_000)
    for n in range(20):
        log.line(f"{n} " + "x" * 10_000)
    assert not log.flush(0.2), "the pipe is full"
    log.line("late")
    kept = gzip.decompress(log.packed()).splitlines()
    assert [line.split(b" ")[0] for line in kept[1:]] == [*(b"%d" % n for n in range(20)), b"late"]
    os.close(reader)
    assert log.flush(30)
    assert gzip.decompress(log.packed()).splitlines() == kept, "and each once, where it is kept again"
    os.close(writer)
