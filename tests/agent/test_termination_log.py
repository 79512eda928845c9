"""The final report on a real disk, which may be full: at each moment there is a report, once there was one."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from terrahalt_agent.adapters.termination_log import clear_final_report, keep_room, reserve_room, write_final_report
from terrahalt_protocol.messages import Lock, LockCondition, Outcome, Report, Result, StateCondition, Step
from terrahalt_protocol.signing import MAX_TERMINATION_BYTES, report_key, seal, unseal
from tests.small_disk import a_small_disk, fill

RUN = "01JRUN"
KEY = report_key(b"a secret of the installation", RUN)


def a_report(message: str = "m", addresses: int = 0) -> Report:
    named = tuple(f"module.network.aws_route.private[{n}]" for n in range(addresses))
    result = Result(
        outcome=Outcome.SUCCEEDED,
        reason="Applied",
        message=message,
        state=StateCondition.COMPLETE,
        lock=Lock(condition=LockCondition.RELEASED),
        open_addresses=named,
        open_address_count=addresses,
    )
    return Report(run_id=RUN, task_uid="u", boot_id="b", sequence=1, step=Step.SWEEP, result=result)


SHORT, OF_TWO_PARTS, LONG = a_report(), a_report("n" * 400), a_report("o" * 900, addresses=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """As the kubelet makes it: an empty file."""
    (tmp_path / "termination-log").touch(0o600)
    return tmp_path / "termination-log"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with a_small_disk(tmp_path / "disk", mebibytes=1) as disk:
        yield disk


def read(path: Path) -> Report | None:
    return unseal(path.read_text(), KEY, RUN)


def sealed(report: Report) -> Report | None:
    """As much of it as there is room for."""
    return unseal(seal(report, KEY).decode(), KEY, RUN)


def keep_full(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has filled it takes at once what is given back."""
    fill(disk)

    def and_fill(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done = real(*arguments)
            fill(disk)
            return done

        return call

    for name in ("open", "pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, and_fill(getattr(os, name)))


@pytest.mark.parametrize("report", [SHORT, OF_TWO_PARTS, LONG])
def test_on_a_full_disk_there_is_room_for_the_report(
    disk: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    path = disk / "termination-log"
    reserve_room(str(path), RUN)
    keep_room(str(path))
    keep_full(disk, monkeypatch)
    write_final_report(str(path), report, KEY)
    assert path.read_bytes() == seal(report, KEY)


@pytest.mark.parametrize(("first", "second"), [(SHORT, LONG), (LONG, SHORT), (OF_TWO_PARTS, SHORT)])
def test_on_a_full_disk_there_is_room_for_a_second_report_too(
    disk: Path, monkeypatch: pytest.MonkeyPatch, first: Report, second: Report
) -> None:
    """Its outputs were published after the first one."""
    path = disk / "termination-log"
    reserve_room(str(path), RUN)
    keep_full(disk, monkeypatch)
    for report in (first, second):
        write_final_report(str(path), report, KEY)
        assert path.read_bytes() == seal(report, KEY)


def test_what_finds_no_room_at_all_is_only_told(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = disk / "termination-log"
    path.touch()
    fill(disk)
    reserve_room(str(path), RUN)
    write_final_report(str(path), SHORT, KEY)
    assert read(path) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert all(RUN in record.message for record in caplog.records)


@pytest.mark.parametrize("on_disk", [0, 1, 300])
def test_a_report_that_finds_no_room_leaves_the_one_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_disk: int
) -> None:
    """As with blocks of 1 KiB, of which so many bytes are left."""
    write_final_report(str(path), SHORT, KEY)
    room, real = len(seal(SHORT, KEY)) + on_disk, os.pwrite

    def pwrite(fd: int, content: bytes, at: int) -> int:
        if at >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, content[: room - at], at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_final_report(str(path), LONG, KEY)
    assert read(path) == SHORT
    assert "No space left on device" in caplog.text


class Watched:
    """Every call that changes the file, and what is there after it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.seen: list[str] = []
        for name in ("pwrite", "fsync", "fdatasync", "ftruncate"):
            monkeypatch.setattr(os, name, self._watching(name, getattr(os, name), path))

    def _watching(self, name: str, real: Callable[..., Any], path: Path) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done = real(*arguments)
            self.calls.append(name)
            self.seen.append(path.read_text())
            return done

        return call


@pytest.mark.parametrize(("first", "second"), [(SHORT, LONG), (LONG, SHORT), (OF_TWO_PARTS, SHORT), (LONG, LONG)])
def test_at_each_moment_there_is_a_report_that_an_operator_of_version_0_1_0_reads_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, first: Report, second: Report
) -> None:
    reserve_room(str(path), RUN)
    write_final_report(str(path), first, KEY)
    watched = Watched(path, monkeypatch)
    write_final_report(str(path), second, KEY)
    for message in watched.seen:
        assert unseal(message, KEY, RUN) in (sealed(first), sealed(second))
        assert set(json.loads(message)) >= {"report", "hmac"}
    assert path.read_bytes() == seal(second, KEY)


def test_a_report_is_written_before_any_room_is_given_back_and_no_end_waits_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve_room(str(path), RUN)
    watched = Watched(path, monkeypatch)
    write_final_report(str(path), SHORT, KEY)
    assert watched.calls == ["pwrite", "ftruncate"]
    assert watched.seen[0] == seal(SHORT, KEY).decode().ljust(MAX_TERMINATION_BYTES)


def test_the_disk_has_the_room_once_it_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(path, monkeypatch)
    reserve_room(str(path), RUN)
    assert "fsync" not in watched.calls
    keep_room(str(path))
    assert watched.calls[-1] == "fsync"
    assert path.stat().st_blocks * 512 >= MAX_TERMINATION_BYTES


def test_until_there_is_a_report_people_read_that_there_is_none(path: Path) -> None:
    reserve_room(str(path), RUN)
    text = path.read_text()
    assert len(text) == MAX_TERMINATION_BYTES
    assert text.strip() == f"run {RUN}: its agent has written no report; see its log"
    assert read(path) is None


def test_a_call_that_writes_less_than_it_was_given_is_followed_by_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, content, at: real(fd, content[:700], at))
    reserve_room(str(path), RUN)
    assert len(path.read_bytes()) == MAX_TERMINATION_BYTES
    write_final_report(str(path), LONG, KEY)
    assert path.read_bytes() == seal(LONG, KEY)


@pytest.mark.parametrize("size", [1, MAX_TERMINATION_BYTES - 1, 10_000_000])
def test_whatever_user_code_has_made_of_the_file_the_report_takes_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """And as much memory as a report."""
    with path.open("wb") as file:
        file.write(b"all is well")
        file.truncate(size)
    lengths, real = [], os.pwrite

    def pwrite(fd: int, content: bytes, at: int) -> int:
        lengths.append(len(content))
        return real(fd, content, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_final_report(str(path), OF_TWO_PARTS, KEY)
    assert path.read_bytes() == seal(OF_TWO_PARTS, KEY)
    assert max(lengths) <= MAX_TERMINATION_BYTES


def test_of_what_was_there_the_reserved_room_leaves_nothing(path: Path) -> None:
    path.write_text("x" * 10_000)
    reserve_room(str(path), RUN)
    assert "x" not in path.read_text()
    assert len(path.read_text()) == MAX_TERMINATION_BYTES


def test_between_two_runs_it_is_empty_and_the_next_one_has_room_of_its_own(path: Path) -> None:
    reserve_room(str(path), RUN)
    write_final_report(str(path), LONG, KEY)
    clear_final_report(str(path))
    assert path.read_bytes() == b""
    reserve_room(str(path), "01JNEXT")
    assert path.read_text().startswith("run 01JNEXT: ")


def test_outside_of_a_pod_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    room, report = tmp_path / "room", tmp_path / "report"
    reserve_room(str(room), RUN)
    write_final_report(str(report), SHORT, KEY)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (room, report)] == [0o600, 0o600]


def test_no_failure_ends_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = str(tmp_path / "missing" / "termination-log")
    reserve_room(nowhere, RUN)
    keep_room(nowhere)
    write_final_report(nowhere, SHORT, KEY)
    assert SHORT.result is not None
    result = replace(SHORT.result, lock=Lock(condition=LockCondition.HELD, command="x" * 4_000))
    write_final_report(str(tmp_path / "too-long"), replace(SHORT, result=result), KEY)
    assert len(caplog.records) == 4
