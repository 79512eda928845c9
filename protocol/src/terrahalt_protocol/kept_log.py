"""The log of a run in a Secret of its task, where it outlives the pod: its name and its form.

Both sides write it: the agent at the end of a run, and the operator from the pod's log where the agent could not.
What is too much is left out in the middle, as most is to be learnt at the beginning and at the end. Pure.
"""

from __future__ import annotations

import gzip
from typing import Any

from terrahalt_protocol import kept_secret
from terrahalt_protocol.messages import TaskRef

KEY = "log.gz"
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 2 * 1024 * 1024
_COMPRESSION = 6


def name(run_id: str) -> str:
    return f"terrahalt-log-{run_id.lower()}"


def secret(packed: bytes, task: TaskRef, *, workspace: str, run_id: str) -> dict[str, Any]:
    metadata = kept_secret.owned_by(task, workspace=workspace, run_id=run_id)
    return kept_secret.secret(name(run_id), metadata, {KEY: packed})


def pack(head: bytes, tail: bytes, left_out: int = 0) -> bytes:
    """Compressed to what a Secret holds. `left_out`: so many bytes are missing in between already."""
    while True:
        note = b"terrahalt: %d bytes are left out here: a kept log has its beginning and its end\n" % left_out
        packed = gzip.compress(head + (note if left_out else b"") + tail, _COMPRESSION, mtime=0)
        if len(packed) <= kept_secret.MAX_BYTES:
            return packed
        first, last = _first_lines(head, len(head) * 3 // 4), _last_lines(tail, len(tail) * 3 // 4)
        left_out += len(head) - len(first) + len(tail) - len(last)
        head, tail = first, last


def of_run(log: bytes, run_id: str) -> bytes:
    """From the first line on that the agent has written of it; all, where that was too long ago to be there."""
    mark = f"terrahalt: run {run_id}: ".encode()
    at = 0 if log.startswith(mark) else log.find(b"\n" + mark) + 1
    return log[at:]


def _first_lines(text: bytes, size: int) -> bytes:
    return text[: text.rfind(b"\n", 0, size) + 1]


def _last_lines(text: bytes, size: int) -> bytes:
    """Whole ones, if there are any."""
    return text[-size:].partition(b"\n")[2] or text[-size:]
