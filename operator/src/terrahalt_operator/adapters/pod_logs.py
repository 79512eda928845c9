"""Keeps the log of a run whose agent could not: from the pod, into the same Secret, while the pod is there.

What it can't have, it does without: no end of a run waits long for it, and none fails by it. Called by `effects`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from terrahalt_operator.adapters import cluster as api
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.core import names
from terrahalt_operator.core.model import Claim, Task
from terrahalt_operator.errors import AlreadyExists, ClusterError
from terrahalt_protocol import kept_log
from terrahalt_protocol.messages import TaskRef

TIMEOUT_S = 5.0
"""Of each request: the kubelet that has the log has just told that the container ended."""
log = logging.getLogger(__name__)


async def keep(cluster: Cluster, task: Task, claim: Claim) -> bool:
    """Whether there is a Secret with it now."""
    in_time = cluster.within(TIMEOUT_S)
    container, size = names.AGENT_CONTAINER, kept_log.TAIL_BYTES
    try:
        of_pod, left_out = await in_time.log_tail(task.namespace, claim.pod_name, container, size)
        if not of_pod:
            return False
        of_run = kept_log.of_run(of_pod, claim.run_id)
        if len(of_run) < len(of_pod):
            left_out = 0  # it was of what came before the run
        packed = await asyncio.to_thread(kept_log.pack, b"", of_run, left_out)
        ref = TaskRef(namespace=task.namespace, name=task.name, uid=task.uid)
        secret = kept_log.secret(packed, ref, workspace=task.spec.workspace, run_id=claim.run_id)
        with contextlib.suppress(AlreadyExists):  # by its agent, or by an operator before this one
            await in_time.create(api.SECRETS, task.namespace, secret)
    except ClusterError as error:
        log.warning("task %s/%s: the log of its agent is not kept: %s", task.namespace, task.name, error)
        return False
    return True
