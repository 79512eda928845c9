"""A server in the cluster that takes every connection and never says a word."""

from __future__ import annotations

import pytest

from tests.e2e.installation import RUNS, Installation

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
