"""Reads the file that terraform writes to, line by line, as it grows, and keeps its place on the disk small.

Any length, any bytes: a line over `MAX_LINE_BYTES` is given as its beginning, and the rest of it is
passed over. Never blocks for longer than one read. On a full disk terraform goes on and loses its lines: so room for
them is taken ahead, and what was read long ago is given back, by holes. Called by `driver`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024 * 1024
ROOM_BYTES = 4 * 1024 * 1024
"""Ahead of the reader: some ten thousand lines. Half of it is given back at a time, and taken again ahead."""
_PAGE_BYTES = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_WITHOUT_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class LogTail:
    def __init__(self, path: Path) -> None:
        """Raises OSError, also where the disk has no room for a log."""
        self._file: BinaryIO = path.open("r+b", buffering=0)
        self._pending = bytearray()
        self._is_passing_over = False
        self._read_bytes = 0
        self._room_until = ROOM_BYTES
        self.may_miss_lines = False
        """The disk was full, and terraform had written as much as there was room for."""
        try:
            _allocate(self._file, _KEEP_SIZE, 0, ROOM_BYTES)
        except OSError:
            self._file.close()
            raise

    @property
    def behind_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size - self._read_bytes

    def read(self) -> tuple[list[bytes], bool]:
        """The lines that were completed since, and whether there may be more to read at once."""
        chunk = self._file.read(CHUNK_BYTES) or b""
        if not chunk:
            return [], False
        self._read_bytes += len(chunk)
        if self._read_bytes > self._room_until - ROOM_BYTES // 2:
            self._make_room()
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
        """Only when nobody writes any more: it gives the room ahead back."""
        os.truncate(self._file.fileno(), self._read_bytes + self.behind_bytes)
        self._file.close()

    def _make_room(self) -> None:
        is_used_up = self._read_bytes + self.behind_bytes >= self._room_until
        self.may_miss_lines |= is_used_up and os.fstatvfs(self._file.fileno()).f_bavail == 0
        begin = self._read_bytes // _PAGE_BYTES * _PAGE_BYTES  # whole pages: as much is taken as was given back
        try:
            _allocate(self._file, _PUNCH_HOLE | _KEEP_SIZE, 0, begin)
            _allocate(self._file, _KEEP_SIZE, begin, ROOM_BYTES)
        except OSError:
            return  # tried again with the next chunk
        self._room_until = begin + ROOM_BYTES


def _allocate(file: BinaryIO, mode: int, offset: int, length: int) -> None:
    """Does nothing on a filesystem that can't."""
    if _libc.fallocate(file.fileno(), mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code not in _WITHOUT_HOLES:
            raise OSError(code, os.strerror(code), file.name)
