"""Reading a log that grows: any length, any bytes, nothing lost and nothing twice."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_agent.adapters import log_tail
from terrahalt_agent.adapters.log_tail import ROOM_BYTES, LogTail
from tests.small_disk import a_small_disk, fill


def read_all(tail: LogTail) -> list[bytes]:
    lines, has_more = tail.read()
    while has_more:
        more, has_more = tail.read()
        lines += more
    return lines


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_lines_come_once_and_whole_however_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, writes: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.touch()
    tail, seen = LogTail(path), list[bytes]()
    for content in writes:
        with path.open("ab") as file:
            file.write(content)
        seen += read_all(tail)
    seen += tail.rest()
    tail.close()
    whole = b"".join(writes).split(b"\n")
    assert seen == (whole if whole[-1] else whole[:-1])


def test_a_line_longer_than_one_read_comes_whole(tmp_path: Path) -> None:
    long = b"x" * (3 * log_tail.CHUNK_BYTES + 1)
    (tmp_path / "log").write_bytes(b"a\n" + long + b"\nb\nrest")
    tail = LogTail(tmp_path / "log")
    assert read_all(tail) == [b"a", long, b"b"]
    assert tail.rest() == [b"rest"]
    tail.close()


def test_of_a_line_without_end_the_beginning_comes_and_the_rest_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "MAX_LINE_BYTES", log_tail.CHUNK_BYTES)
    (tmp_path / "log").write_bytes(b"x" * 10 * log_tail.CHUNK_BYTES + b"\nafter\n")
    tail = LogTail(tmp_path / "log")
    lines = read_all(tail)
    tail.close()
    assert [len(line) for line in lines] == [2 * log_tail.CHUNK_BYTES, 5]
    assert lines[1] == b"after"


# -- its place on a disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with a_small_disk(tmp_path / "disk", mebibytes=16) as disk:
        yield disk


def test_a_log_of_many_times_the_disk_takes_only_a_little_of_it(small_disk: Path) -> None:
    path = small_disk / "log"
    path.touch()
    tail, line, seen = LogTail(path), b"x" * 1023 + b"\n", 0
    with path.open("ab", buffering=0) as file:
        for _ in range(64):
            assert file.write(line * 1024) == 1024 * 1024
            seen += len(read_all(tail))
    assert seen == 64 * 1024
    assert path.stat().st_blocks * 512 <= 2 * ROOM_BYTES
    tail.close()
    assert path.stat().st_blocks * 512 <= ROOM_BYTES // 2 + 4096
    assert path.stat().st_size == 64 * 1024 * 1024


def test_on_a_full_disk_there_is_room_for_the_lines_that_count(small_disk: Path) -> None:
    path = small_disk / "log"
    path.touch()
    tail, line = LogTail(path), b"x" * 1023 + b"\n"
    fill(small_disk)
    with path.open("ab", buffering=0) as file:
        for _ in range(3 * ROOM_BYTES // len(line)):
            assert file.write(line) == len(line)
            assert tail.read()[0] == [line[:-1]]
            fill(small_disk)  # who has filled it takes at once what is given back
    assert not tail.may_miss_lines
    tail.close()


def test_lines_that_found_no_room_are_known_to_be_missing(small_disk: Path) -> None:
    path = small_disk / "log"
    path.touch()
    tail = LogTail(path)
    fill(small_disk)
    with path.open("ab", buffering=0) as file:
        file.write(b"x\n" * (ROOM_BYTES // 2))
        with pytest.raises(OSError, match="No space left"):
            file.write(b"lost\n")
    read_all(tail)
    assert tail.may_miss_lines
    tail.close()


def test_without_room_for_a_log_there_is_none(small_disk: Path) -> None:
    (small_disk / "log").touch()
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        LogTail(small_disk / "log")


def test_on_a_disk_that_knows_no_holes_it_reads_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoHoles:
        def fallocate(self, *_: int) -> int:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

    monkeypatch.setattr(log_tail, "_libc", NoHoles())
    (tmp_path / "log").write_bytes(b"x\n" * ROOM_BYTES)
    tail = LogTail(tmp_path / "log")
    assert len(read_all(tail)) == ROOM_BYTES
    assert not tail.may_miss_lines
    tail.close()
