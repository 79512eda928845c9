"""The log of a run in a Secret of its task, where it outlives the pod: its name, its form, and what it belongs to.

Both sides write it: the agent at the end of a run, and the operator from the pod's log where the agent could not.
What is too much is left out in the middle, as most is to be learnt at the beginning and at the end. Pure.
"""

from __future__ import annotations

import base64
import gzip
from typing import Any

from terrahalt_protocol.messages import TaskRef

KEY = "log.gz"
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 2 * 1024 * 1024
MAX_PACKED_BYTES = 1_000_000
"""A Secret holds 1 MiB in all."""
_COMPRESSION = 6


def name(run_id: str) -> str:
    return f"terrahalt-log-{run_id.lower()}"


def owned_by(task: TaskRef, *, workspace: str, run_id: str) -> dict[str, Any]:
    """Metadata of a Secret that goes with its task."""
    owner = {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "TerraformTask", "name": task.name, "uid": task.uid}
    return {
        "labels": {"app.kubernetes.io/managed-by": "terrahalt", "terrahalt.dev/workspace": workspace},
        "annotations": {"terrahalt.dev/task": task.name, "terrahalt.dev/run": run_id},
        "ownerReferences": [owner],
    }


def secret(packed: bytes, task: TaskRef, *, workspace: str, run_id: str) -> dict[str, Any]:
    metadata = {**owned_by(task, workspace=workspace, run_id=run_id), "name": name(run_id)}
    data = {KEY: base64.b64encode(packed).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def pack(head: bytes, tail: bytes, left_out: int = 0) -> bytes:
    """Compressed to at most MAX_PACKED_BYTES. `left_out`: so many bytes are missing in between already."""
    while True:
        note = b"terrahalt: %d bytes are left out here: a kept log has its beginning and its end\n" % left_out
        packed = gzip.compress(head + (note if left_out else b"") + tail, _COMPRESSION, mtime=0)
        if len(packed) <= MAX_PACKED_BYTES:
            return packed
        shorter = _last_lines(tail, len(tail) * 3 // 4)
        head, cut = head[: len(head) * 3 // 4].rpartition(b"\n")[0] + b"\n", len(head)
        left_out += cut - len(head) + len(tail) - len(shorter)
        tail = shorter


def of_run(log: bytes, run_id: str) -> bytes:
    """From the first line on that the agent has written of it; all, where that was too long ago to be there."""
    mark = f"terrahalt: run {run_id}: ".encode()
    at = 0 if log.startswith(mark) else log.find(b"\n" + mark) + 1
    return log[at:]


def _last_lines(text: bytes, size: int) -> bytes:
    """Whole ones, if there are any."""
    return text[-size:].partition(b"\n")[2] or text[-size:]
