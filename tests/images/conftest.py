"""The engine that the images were built with: the one that the cluster runs on."""

from __future__ import annotations

import pytest

from tests.cluster import status
from tests.cluster.engine import Engine


@pytest.fixture(scope="module")
def on() -> Engine:
    cluster = status()
    assert cluster
    return Engine(cluster.docker_environment.get("DOCKER_HOST"))
