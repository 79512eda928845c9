"""The node on which all simulated agents are: an object that nobody's kubelet stands behind, kept fresh.

Only pods that tolerate its taint are bound to it, and no DaemonSet's: it has none of the labels that these ask for.
Called by `simulator` (which keeps it fresh) and `stage` (which removes it).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp

from tests.bench.kubernetes_api import Api, ApiError, Json

NAME = "terrahalt-bench-scale"
TAINT = "terrahalt.dev/bench-scale"
NODES = "/api/v1/nodes"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_RENEWED_EVERY_S = 10.0
_ROOM = {"cpu": "100k", "memory": "1000Ti", "pods": "100000", "ephemeral-storage": "1000Ti"}


def where() -> Json:
    """What puts a pod there, for a pool's podTemplate."""
    return {
        "nodeSelector": {"kubernetes.io/hostname": NAME},
        "tolerations": [{"key": TAINT, "operator": "Exists"}],
    }


async def make(api: Api) -> None:
    at = _now()
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Simulated",
        "message": "no kubelet",
        "lastHeartbeatTime": at,
        "lastTransitionTime": at,
    }
    await api.create(
        NODES,
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME}},
            "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]},
            "status": {"capacity": _ROOM, "allocatable": _ROOM, "conditions": [ready]},
        },
    )
    await api.create(
        _LEASES,
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME},
            "spec": {"holderIdentity": NAME, "leaseDurationSeconds": 40, "renewTime": f"{_now(fraction=True)}"},
        },
    )


async def keep_fresh(api: Api) -> None:
    """Until cancelled: a node that is silent for long is given up, with all its pods."""
    while True:
        await asyncio.sleep(_RENEWED_EVERY_S)
        try:
            await api.patch(f"{_LEASES}/{NAME}", {"spec": {"renewTime": _now(fraction=True)}})
        except (ApiError, aiohttp.ClientError, TimeoutError):
            continue  # the next one is soon enough


async def remove(api: Api) -> None:
    await api.delete(f"{NODES}/{NAME}")
    await api.delete(f"{_LEASES}/{NAME}")


def _now(*, fraction: bool = False) -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if fraction else "%Y-%m-%dT%H:%M:%SZ")
