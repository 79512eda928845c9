"""What can happen to a kind cluster beside its nodes: a pod cut off, the API server restarted, etcd frozen.

All of it goes through the engine and asks the API server nothing, so it can be undone while that is away. It must
never touch a cluster that the tool did not make. Called by `tests.e2e.installation`.
"""

from __future__ import annotations

import time

from tests.cluster import kind_cluster
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.model import Cluster

ANSWERS_WITHIN_S = 120


def cut_off(cluster: Cluster, node: str, pid: int) -> None:
    """No packet gets into or out of the network namespace of that process, but on its loopback; until `let_through`.

    `pid` is one on the node. Raises CommandFailed where there is no such process any more."""
    _filter(cluster, node, pid, "--insert")


def let_through(cluster: Cluster, node: str, pid: int) -> None:
    _filter(cluster, node, pid, "--delete")


def restart_api_server(cluster: Cluster) -> None:
    """By SIGKILL; returns when it answers again."""
    node = _first_node(cluster)
    _signal(cluster, "KILL", "kube-apiserver")
    # A kubelet that begins anew has forgotten how often it did this already, and does it at once.
    _engine(cluster).output(["exec", node, "systemctl", "restart", "kubelet"])
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while kind_cluster.find(cluster.name) is None:
        if time.monotonic() > deadline:
            raise ClusterError(f"the API server of {cluster.name} does not come back: `docker logs {node}`")
        time.sleep(0.1)


def freeze_etcd(cluster: Cluster) -> None:
    """The API server answers nothing that it has to ask for, until `thaw_etcd`."""
    _signal(cluster, "STOP", "etcd")


def thaw_etcd(cluster: Cluster) -> None:
    _signal(cluster, "CONT", "etcd")


def _filter(cluster: Cluster, node: str, pid: int, what: str) -> None:
    rules = (("INPUT", "--in-interface"), ("OUTPUT", "--out-interface"))
    inside = " && ".join(f"iptables --wait {what} {chain} ! {device} lo --jump DROP" for chain, device in rules)
    _engine(cluster).output(["exec", node, "nsenter", "--target", str(pid), "--net", "sh", "-c", inside])


def _signal(cluster: Cluster, name: str, program: str) -> None:
    try:
        _engine(cluster).output(["exec", _first_node(cluster), "pkill", "--signal", name, "--full", f"^{program} "])
    except CommandFailed as failure:
        raise ClusterError(f"SIG{name} to {program} of {cluster.name}: {failure}") from failure


def _first_node(cluster: Cluster) -> str:
    """The one with the control plane."""
    (node,) = set(cluster.nodes) - set(cluster.workers)
    return node


def _engine(cluster: Cluster) -> Engine:
    if not cluster.is_ours:
        raise ClusterError(
            f"the cluster {cluster.context} is yours, and its machines are not touched: "
            "use a kind cluster of the tool (without TERRAHALT_KUBECONFIG, WORKERS=1)"
        )
    return Engine(cluster.docker_environment.get("DOCKER_HOST"))
