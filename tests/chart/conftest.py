"""helm, and the API server with the CRDs of this checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.helm import Helm
from tests.cluster import tool
from tests.crds.api_server import ApiServer, connected


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(tool("helm"))


@pytest.fixture(scope="session")
def api() -> Iterator[ApiServer]:
    with connected() as server:
        yield server


@pytest.fixture(scope="session")
def operator_namespace(api: ApiServer) -> Iterator[str]:
    """Refuses what is not restricted, as many clusters do."""
    with api.namespace("chart-operator", **{"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        yield name


@pytest.fixture(scope="session")
def pool_namespace(api: ApiServer) -> Iterator[str]:
    with api.namespace("chart-pool") as name:
        yield name
