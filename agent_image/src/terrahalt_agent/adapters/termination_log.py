"""The final report where the kubelet reads it: it survives in the pod object when the agent is gone.

Sealed, because user code can write there too. Room for it is taken when a run begins, and it is written over what is
there, so that it needs none of a disk that is full by then. A failure to write never ends the agent. Called by
`driver`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from terrahalt_protocol.messages import Report
from terrahalt_protocol.signing import MAX_TERMINATION_BYTES, seal

_log = logging.getLogger(__name__)


def reserve_room(path: str, run_id: str) -> None:
    """As much as the longest report takes, with what people are to read if none comes. Failing is only logged.

    Quick, because the disk has it only after `keep_room`."""
    text = f"run {run_id}: its agent has written no report; see its log"
    try:
        with _opened(path) as fd:
            _write(fd, text.encode().ljust(MAX_TERMINATION_BYTES))
            os.ftruncate(fd, MAX_TERMINATION_BYTES)
    except OSError as error:
        _log.warning("run %s: no room could be taken in %s for its final report: %s", run_id, path, error)


def keep_room(path: str) -> None:
    """Blocks until the disk has what `reserve_room` wrote: some find only then that they are full. Failing is only
    logged."""
    try:
        with _opened(path) as fd:
            os.fsync(fd)
    except OSError as error:
        _log.warning("%s: the room for a final report is not certain: %s", path, error)


def clear_final_report(path: str) -> None:
    """It is on record, and the next run's takes its place. Raises OSError."""
    os.truncate(path, 0)


def write_final_report(path: str, report: Report, key: str) -> None:
    """Sealed with the run's key. What can't be written is only logged: the socket tells it too.

    An earlier report of the run is there until this one is: at each moment one of them, and nothing but blanks
    behind it. Waits for no disk, which may take its time: the end of a run is told only after this."""
    try:
        sealed = seal(report, key)
        with _opened(path) as fd:
            if (size := os.fstat(fd).st_size) > MAX_TERMINATION_BYTES:  # it is not from us
                os.ftruncate(fd, size := MAX_TERMINATION_BYTES)
            _write(fd, b" " * (len(sealed) - size), at=size)  # where there is no room, what is there stays as it is
            _write(fd, sealed.ljust(size))
            os.ftruncate(fd, len(sealed))
    except (OSError, ValueError) as error:
        _log.warning("run %s: the final report could not be written to %s: %s", report.run_id, path, error)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Its file descriptor; what is in it stays."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, content: bytes, *, at: int = 0) -> None:
    """All of it: a call may write less, as where the disk fills up. Raises OSError."""
    while content:
        written = os.pwrite(fd, content, at)
        content, at = content[written:], at + written
