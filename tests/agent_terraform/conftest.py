"""Fixtures: a fresh agent per test, real providers from a folder instead of a registry, and a cloud for one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent_terraform.certificates import Authority, an_authority
from tests.agent_terraform.harness import AgentProcess, Operator, an_agent, an_operator
from tests.cloud import Cloud, a_cloud
from tests.providers import mirrored


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever the order is, that all rows were met is asked at the end."""
    items.sort(key=lambda item: item.path.name == "test_rows.py")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return an_authority(tmp_path)


@pytest.fixture
async def agent(tmp_path: Path, authority: Authority) -> AsyncIterator[AgentProcess]:
    async with an_agent(tmp_path, authority) as started:
        yield started


@pytest.fixture
async def operator(agent: AgentProcess) -> AsyncIterator[Operator]:
    async with an_operator(agent) as connected:
        yield connected


@pytest.fixture(scope="session")
def providers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment with which the engine finds `time` and `trial`; compiling them takes a minute, once."""
    return mirrored(tmp_path_factory.mktemp("providers"))


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with a_cloud() as running:
        yield running
