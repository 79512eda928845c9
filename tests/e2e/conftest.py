"""Servers in the cluster, made at their first use."""

from __future__ import annotations

import pytest

from tests.e2e import servers
from tests.e2e.installation import Installation
from tests.e2e.servers import HttpStates, PrivateRepositories, PublishedRepository


@pytest.fixture(scope="session")
def silent_host(installation: Installation) -> str:
    """Host and port, for addresses, of one that takes every connection and never says a word."""
    return servers.stay_silent(installation)


@pytest.fixture(scope="session")
def http_states(installation: Installation) -> HttpStates:
    """A backend that is reached without the API server."""
    return servers.keep_states(installation)


@pytest.fixture(scope="session")
def published(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    """A git repository."""
    return servers.publish(installation, tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="session")
def private(installation: Installation) -> PrivateRepositories:
    """Two git repositories and an archive, of a server that asks who comes."""
    return servers.publish_privately(installation)
