"""What is remembered of a run's log until its end: its first and its last lines, within bounds.

Takes what was redacted already. Called by `adapters.pod_log`, on the thread that writes the pod's log, and asked by
`driver` at the end of the run. Pure.
"""

from __future__ import annotations

from collections import deque

from terrahalt_protocol.kept_log import HEAD_BYTES, TAIL_BYTES, pack


class KeptLog:
    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self.begin()

    def begin(self) -> None:
        """Another run's follows."""
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = self._left_out = 0

    def copy(self) -> KeptLog:
        other = KeptLog(self._head_bytes, self._tail_bytes)
        other._head, other._tail = bytearray(self._head), deque(self._tail)
        other._tail_size, other._left_out = self._tail_size, self._left_out
        return other

    def add(self, line: bytes) -> None:
        """With its end."""
        if not self._tail and len(self._head) + len(line) <= self._head_bytes:
            self._head += line
            return
        self._tail.append(line)
        self._tail_size += len(line)
        while self._tail_size > self._tail_bytes and len(self._tail) > 1:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._left_out += gone

    def packed(self) -> bytes:
        return pack(bytes(self._head), b"".join(self._tail), self._left_out)
