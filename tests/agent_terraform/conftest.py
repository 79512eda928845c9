"""Fixtures: a fresh agent per test, and a real provider from a folder instead of a registry."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import engine
from tests.agent_terraform.certificates import Authority, an_authority
from tests.agent_terraform.harness import AgentProcess, Operator, an_agent, an_operator
from tests.cluster.images import REGISTRIES

_TIME_VERSION = "0.14.2"


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
def time_provider(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment with which the engine finds the provider `time`, built from source: about 20 s, once."""
    folder = tmp_path_factory.mktemp("providers")
    home = folder / "mirror" / REGISTRIES[engine.NAME] / "hashicorp/time" / _TIME_VERSION / f"linux_{_architecture()}"
    home.mkdir(parents=True)
    subprocess.run(
        ["go", "install", f"github.com/hashicorp/terraform-provider-time@v{_TIME_VERSION}"],
        env=os.environ | {"GOBIN": str(folder), "CGO_ENABLED": "0"},
        check=True,
    )
    (folder / "terraform-provider-time").rename(home / f"terraform-provider-time_v{_TIME_VERSION}")
    config = folder / "terraformrc"
    config.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{folder}/mirror"\n  }}\n}}\n')
    return {"TF_CLI_CONFIG_FILE": str(config)}


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
