"""helm, and the API server with the CRDs of this checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart.helm import Helm
from tests.cluster import tool
from tests.crds.api_server import ApiServer, connected, eventually


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
        # A pod without it is refused, and a moment after its namespace was made it is not there yet.
        account = eventually(
            lambda: api.try_kubectl("--namespace", name, "get", "serviceaccount", "default"),
            lambda got: got.returncode == 0,
        )
        assert account.returncode == 0, account.stderr
        yield name


@pytest.fixture(scope="session")
def pool_namespace(api: ApiServer) -> Iterator[str]:
    with api.namespace("chart-pool") as name:
        yield name
