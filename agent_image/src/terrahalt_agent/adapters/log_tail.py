"""Reads the file that terraform writes to, line by line, as it grows.

Any length, any bytes: a line over `MAX_LINE_BYTES` is given as its beginning, and the rest of it is
passed over. Never blocks for longer than one read. Called by `driver`.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024 * 1024


class LogTail:
    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._pending = bytearray()
        self._is_passing_over = False

    def read(self) -> tuple[list[bytes], bool]:
        """The lines that were completed since, and whether there may be more to read at once."""
        chunk = self._file.read(CHUNK_BYTES) or b""
        if not chunk:
            return [], False
        head, newline, rest = chunk.partition(b"\n")
        lines: list[bytes] = []
        if newline:
            if not self._is_passing_over:
                lines.append(bytes(self._pending + head))
            *complete, rest = rest.split(b"\n")
            lines += complete
            self._pending, self._is_passing_over = bytearray(rest), False
        elif not self._is_passing_over:
            self._pending += head
        if len(self._pending) > MAX_LINE_BYTES:
            lines.append(bytes(self._pending))
            self._pending, self._is_passing_over = bytearray(), True
        return lines, len(chunk) == CHUNK_BYTES

    def rest(self) -> list[bytes]:
        """A last line without its end; only when nobody writes any more."""
        last, self._pending = bytes(self._pending), bytearray()
        return [last] if last else []

    def close(self) -> None:
        self._file.close()
