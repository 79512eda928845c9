"""A Secret that a run leaves: how it says whose it is, and how large it may be.

Plans, logs, outputs and states are kept in such ones; both sides write some. Pure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from terrahalt_protocol.messages import TaskRef

MAX_BYTES = 1_000_000
"""Of its values: a Secret holds 1 MiB in all."""


def of_run(task: TaskRef, *, workspace: str, run_id: str) -> dict[str, Any]:
    """Metadata of one that outlives its task."""
    return {
        "labels": {"app.kubernetes.io/managed-by": "terrahalt", "terrahalt.dev/workspace": workspace},
        "annotations": {"terrahalt.dev/task": task.name, "terrahalt.dev/run": run_id},
    }


def owned_by(task: TaskRef, *, workspace: str, run_id: str) -> dict[str, Any]:
    """Metadata of one that goes with its task."""
    owner = {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "TerraformTask", "name": task.name, "uid": task.uid}
    return {**of_run(task, workspace=workspace, run_id=run_id), "ownerReferences": [owner]}


def secret(name: str, metadata: Mapping[str, Any], values: Mapping[str, bytes]) -> dict[str, Any]:
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {**metadata, "name": name}, "data": data}
