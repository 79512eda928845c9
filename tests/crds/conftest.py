"""The API server with the CRDs of this checkout, and a namespace to try objects in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crds.api_server import ApiServer, connected


@pytest.fixture(scope="session")
def api() -> Iterator[ApiServer]:
    with connected() as server:
        yield server


@pytest.fixture(scope="session")
def namespace(api: ApiServer) -> Iterator[str]:
    with api.namespace("crd-tests") as name:
        yield name
