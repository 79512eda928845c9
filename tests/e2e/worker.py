"""A node that tests may freeze, cut off or drain: prepared for it, and put back. Called by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.installation import SOAK, Installation


@contextmanager
def prepared(installation: Installation, node: str) -> Iterator[None]:
    """It has the idle agent of SOAK, and not the operator that leads. Afterwards every node is Ready and takes pods."""
    _keep_operator_away(installation, node)
    _await_no_idle_agent(installation)
    others = [other for other in installation.cluster.nodes if other != node]
    for other in others:
        installation.cordon_node(other)
    try:
        installation.scale_pool(SOAK, 1)
        _await_idle_agent_on(installation, node)
        for other in others:
            installation.uncordon_node(other)
        yield
    finally:
        installation.bring_nodes_back()
        installation.scale_pool(SOAK, 0)


def _await_no_idle_agent(installation: Installation) -> None:
    """One that the test before left elsewhere would do for the pool, and none would be made on the node."""

    def is_nowhere() -> bool:
        return not installation.agents_without_task(SOAK)

    installation.timeline.until(is_nowhere, 60, f"the idle agents of {SOAK} to be on their way out")


def _await_idle_agent_on(installation: Installation, node: str) -> None:
    def is_there() -> bool:
        return any(pod["spec"].get("nodeName") == node for pod in installation.idle_agents(SOAK))

    installation.timeline.until(is_there, 60, f"an idle agent on {node}")


def _keep_operator_away(installation: Installation, node: str) -> None:
    installation.wait_for_standby()
    pod = installation.operator_pod()
    if pod is None or pod["spec"].get("nodeName") != node:
        return
    epoch = installation.epoch()
    installation.cordon_node(node)
    installation.replace_operator_pod()
    installation.wait_for_take_over(epoch)
    installation.uncordon_node(node)
