"""Reading a log that grows: any length, any bytes, nothing lost and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_agent.adapters import log_tail
from terrahalt_agent.adapters.log_tail import LogTail


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
