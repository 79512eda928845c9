"""A pool of its own for the random trials; the others give their agents back meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.installation import NARROW, RUNS, SOAK, Installation

IDLE = 4


@pytest.fixture(scope="module")
def room(installation: Installation) -> Iterator[Installation]:
    """For pools that a test makes itself."""
    # A small node has room for seven agents, by what they request.
    others = {namespace: _wanted(installation, namespace) for namespace in (RUNS, NARROW)}
    for namespace in others:
        installation.scale_pool(namespace, 0)
    yield installation
    for namespace, idle in others.items():
        installation.scale_pool(namespace, idle)


@pytest.fixture(scope="module")
def soak(room: Installation) -> Iterator[Installation]:
    room.scale_pool(SOAK, IDLE)
    yield room
    for pool in room.soak_pools:
        room.scale_pool(SOAK, 0, pool)


def _wanted(installation: Installation, namespace: str) -> int:
    pool = installation.kubectl.get("--namespace", namespace, "agentpool", "default")
    idle: int = pool["spec"]["minIdle"]
    return idle
