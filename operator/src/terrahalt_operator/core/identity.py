"""The names by which a state, its claim and its lock are found, the same answer on every shard; and whose a claim is.

Pure. A change here would let two runs work on one state: the tests hold the values fast. Called by
`schedule` and `status`, and by those who read and write claims.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache

import msgspec

from terrahalt_operator.core.model import BackendSpec, Claim, Task
from terrahalt_protocol.backends import KUBERNETES, WITHOUT_WORKSPACES
from terrahalt_protocol.state_lock import state_suffix

DEFAULT_BACKEND = BackendSpec()


def state_identity(namespace: str, workspace: str, backend: BackendSpec = DEFAULT_BACKEND) -> str:
    """What two tasks share exactly if they work on the same state, as far as their specs tell.

    A bucket is the same from every namespace, so its config stands for it; what is only in a Secret is not seen, and a
    config without anything in it would be everybody's."""
    if backend.type == KUBERNETES:
        return f"kubernetes/{namespace}/{state_suffix(workspace)}"
    where = "default" if backend.type in WITHOUT_WORKSPACES and backend.config else workspace
    seen = backend.config or {"namespace": namespace, "configFrom": backend.config_from}
    digest = hashlib.sha256(msgspec.json.encode(seen, order="sorted")).hexdigest()
    return f"{backend.type}/{where}/{digest}"


def claim_name(namespace: str, workspace: str, backend: BackendSpec = DEFAULT_BACKEND) -> str:
    return "run-" + hashlib.sha256(state_identity(namespace, workspace, backend).encode()).hexdigest()


def claim_name_of(task: Task) -> str:
    if task.spec.backend.type == KUBERNETES:
        return _claim_name_on_kubernetes(task.namespace, task.spec.workspace)
    return claim_name(task.namespace, task.spec.workspace, task.spec.backend)


@lru_cache(maxsize=20_000)
def _claim_name_on_kubernetes(namespace: str, workspace: str) -> str:
    """Each look at a pool asks for that of each task that waits."""
    return claim_name(namespace, workspace)


def claim_of_status(task: Task) -> Claim | None:
    """The claim of a run that was given out, where somebody deleted its Lease: that pair goes on."""
    status = task.status
    if status.is_terminal or not status.run_id or status.agent is None:
        return None
    return Claim(
        name=claim_name_of(task),
        resource_version="",
        run_id=status.run_id,
        task_namespace=task.namespace,
        task_name=task.name,
        task_uid=task.uid,
        pod_name=status.agent.pod_name,
        pod_uid=status.agent.pod_uid,
        container_id=status.agent.container_id,
        fingerprint="",
    )


def is_of_another_shard(claim: Claim, watched: Collection[str]) -> bool:
    """Its task is one that an operator of these namespaces can't see; empty: it sees all."""
    return bool(watched) and claim.task_namespace not in watched


def label_value(name: str) -> str:
    """A label's value for an object's name: names may have 253 characters, values 63."""
    if len(name) <= 63:
        return name
    return name[:52].rstrip("-.") + "-" + hashlib.sha256(name.encode()).hexdigest()[:10]
