"""The API server with the CRDs of this checkout, and a namespace to try objects in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from terrahalt_operator.api.crd import KINDS, root_schema
from terrahalt_operator.api.schema import Kind
from tests.cluster import tool, up
from tests.crds.api_server import ROOT, ApiServer, connected, eventually, published


@pytest.fixture(scope="session")
def api() -> Iterator[ApiServer]:
    cluster = up()
    with connected(tool("kubectl"), cluster.environment) as server:
        # Server-side, as the annotation of a client-side apply has no room for a CRD.
        server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
        server.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(ROOT / "crds"))
        for kind in KINDS:
            _wait_until_served(server, kind)
        yield server


def _wait_until_served(server: ApiServer, kind: Kind) -> None:
    """Established is true of an older schema too: what is handed out last is what counts."""
    ours = root_schema(kind)["properties"]

    def serves_ours(served: Mapping[str, Any]) -> bool:
        return all(served.get(part) == ours[part] for part in ("spec", "status"))

    assert serves_ours(eventually(lambda: published(server, kind.kind), serves_ours)), (
        f"the API server does not hand out this checkout's {kind.kind}"
    )


@pytest.fixture(scope="session")
def namespace(api: ApiServer) -> Iterator[str]:
    with api.namespace("crd-tests") as name:
        yield name
