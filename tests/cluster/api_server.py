"""The API server of a kind cluster, taken away for a while and brought back; nodes and pods go on.

Its manifest is moved out of the kubelet's sight, so it ends, and nobody listens at its port any more. The
controller manager and the scheduler go with it: without an API server they can only fail, and would be
started ever later. etcd stays. Called by the package's functions.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster import kind_cluster, nodes
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster

AWAY_WITHIN_S = 60
BACK_WITHIN_S = 120
_LEADING = ("kube-controller-manager", "kube-scheduler")
_MOVE = """
    cd /etc/kubernetes; mkdir -p away manifests
    for part in kube-apiserver kube-controller-manager kube-scheduler; do
        if [ -e "{source}/$part.yaml" ]; then mv "{source}/$part.yaml" {target}/; fi
    done
"""


def take_away(cluster: Cluster) -> None:
    """Returns when nobody answers any more. No-op where it is away."""
    _move(cluster, "manifests", "away")
    _until(cluster, AWAY_WITHIN_S, "end", answers=False)


def bring_back(cluster: Cluster, kubectl: Path) -> None:
    """Returns when the control plane works again, and all nodes are Ready. No-op where it was not away."""
    began = time.time()
    _move(cluster, "away", "manifests")
    _until(cluster, BACK_WITHIN_S, "answer", answers=True)
    for part in _LEADING:
        look = f"kubectl -n kube-system logs -l component={part}"
        nodes.await_renewal(cluster, kubectl, "kube-system", part, began, look)
    nodes.bring_all_back(cluster, kubectl)


def _move(cluster: Cluster, source: str, target: str) -> None:
    if not cluster.is_ours:
        raise ClusterError(f"the API server of {cluster.context} is yours, and is not touched")
    (node,) = set(cluster.nodes) - set(cluster.workers)
    on = Engine(cluster.docker_environment.get("DOCKER_HOST"))
    on.output(["exec", node, "sh", "-ec", _MOVE.format(source=source, target=target)])


def _until(cluster: Cluster, within_s: float, what: str, *, answers: bool) -> None:
    deadline = time.monotonic() + within_s
    wanted = 200 if answers else 0
    while kind_cluster.readyz(cluster) != wanted:
        if time.monotonic() > deadline:
            raise ClusterError(f"the API server of {cluster.name} did not {what} within {within_s:g} s")
        time.sleep(0.2)
