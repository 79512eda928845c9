"""What the cluster tests share: servers in the cluster, made at their first use, and a node to do things to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import servers
from tests.e2e.installation import SOAK, Installation
from tests.e2e.servers import PublishedRepository


@pytest.fixture(scope="session")
def silent_host(installation: Installation) -> str:
    """Host and port, for addresses, of one that takes every connection and never says a word."""
    return servers.stay_silent(installation)


@pytest.fixture(scope="session")
def published(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    """A git repository."""
    return servers.publish(installation, tmp_path_factory.mktemp("git"))


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
        _await_idle_agent_on(installation, node)
        for other in others:
            installation.uncordon_node(other)
        yield node
    finally:
        installation.bring_nodes_back()
        installation.scale_pool(SOAK, 0)


def _await_idle_agent_on(installation: Installation, node: str) -> None:
    def is_there() -> bool:
        return any(pod["spec"].get("nodeName") == node for pod in installation.idle_agents(SOAK))

    installation.timeline.until(is_there, 60, f"an idle agent on {node}")


def _keep_operator_away(installation: Installation, node: str) -> None:
    pod = installation.operator_pod()
    if pod is None or pod["spec"].get("nodeName") != node:
        return
    epoch = installation.epoch()
    installation.cordon_node(node)
    installation.replace_operator_pod()
    installation.wait_for_take_over(epoch)
    installation.uncordon_node(node)
