"""A pool of its own for the random trials; the others give their agents back meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.installation import NARROW, RUNS, SOAK, Installation

IDLE = 4


@pytest.fixture(scope="module")
def soak(installation: Installation) -> Iterator[Installation]:
    # A small node has room for seven agents, by what they request.
    others = {namespace: _wanted(installation, namespace) for namespace in (RUNS, NARROW)}
    for namespace in others:
        installation.scale_pool(namespace, 0)
    installation.scale_pool(SOAK, IDLE)
    yield installation
    for pool in installation.soak_pools:
        installation.scale_pool(SOAK, 0, pool)
    for namespace, idle in others.items():
        installation.scale_pool(namespace, idle)


def _wanted(installation: Installation, namespace: str) -> int:
    pool = installation.kubectl.get("--namespace", namespace, "agentpool", "default")
    idle: int = pool["spec"]["minIdle"]
    return idle
