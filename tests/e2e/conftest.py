"""What the cluster tests share: a server that takes every connection and never says a word; a node to do things to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.installation import RUNS, SOAK, Installation

_NAME = "silent"
_SERVER = "import socket, signal; s = socket.create_server(('', 8080), backlog=512); signal.pause()"


@pytest.fixture(scope="session")
def silent_host(installation: Installation) -> str:
    """Its host and port, for addresses; it goes with its namespace."""
    named = {"name": _NAME, "namespace": RUNS}
    labels = {"app": _NAME}
    container = {"name": _NAME, "image": installation.images.agent_test, "command": ["python3", "-c", _SERVER]}
    installation.kubectl.apply(
        {
            # Not a bare pod, which nobody would make anew: those stop the drain of a node.
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": named,
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    )
    installation.kubectl("--namespace", RUNS, "rollout", "status", f"deployment/{_NAME}", "--timeout=60s")
    return f"{_NAME}.{RUNS}.svc:8080"


@pytest.fixture
def worker(installation: Installation) -> Iterator[str]:
    """A node that may be frozen or cut off: it has the idle agent of SOAK, and not the operator.

    Afterwards it is Ready and takes pods, whatever was done to it."""
    if not installation.cluster.is_ours or not installation.cluster.workers:
        pytest.skip("needs a kind cluster of two nodes: make cluster-down, then make cluster-up WORKERS=1")
    node = installation.cluster.workers[0]
    _keep_operator_away(installation, node)
    others = [other for other in installation.cluster.nodes if other != node]
    for other in others:
        installation.cordon_node(other)
    try:
        installation.scale_pool(SOAK, 1)
        for other in others:
            installation.uncordon_node(other)
        yield node
    finally:
        installation.bring_nodes_back()
        installation.scale_pool(SOAK, 0)


def _keep_operator_away(installation: Installation, node: str) -> None:
    pod = installation.operator_pod()
    if pod is None or pod["spec"].get("nodeName") != node:
        return
    epoch = installation.epoch()
    installation.cordon_node(node)
    installation.replace_operator_pod()
    installation.wait_for_take_over(epoch)
    installation.uncordon_node(node)
