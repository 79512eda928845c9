"""The plugin of this checkout, alone and in front of the API server with the CRDs of this checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cluster as test_cluster
from tests.crds.api_server import ApiServer, connected
from tests.plugin.program import Program
from tests.plugin.tasks import Tasks


@pytest.fixture(scope="session")
def path() -> Path:
    return test_cluster.plugin()


@pytest.fixture(scope="session")
def alone(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Without a cluster."""
    return Program(path, {"KUBECONFIG": "", "HOME": str(tmp_path_factory.mktemp("home"))})


@pytest.fixture(scope="session")
def api() -> Iterator[ApiServer]:
    with connected() as server:
        yield server


@pytest.fixture(scope="session")
def namespace(api: ApiServer) -> Iterator[str]:
    with api.namespace("plugin-tests") as name:
        yield name


@pytest.fixture(scope="session")
def plugin(path: Path, api: ApiServer, namespace: str) -> Program:
    cluster = test_cluster.status()
    assert cluster is not None
    return Program(path, cluster.environment, namespace)


@pytest.fixture(scope="session")
def tasks(api: ApiServer, namespace: str) -> Tasks:
    return Tasks(api, namespace)
