"""What the tool hands out: the running cluster and the images in it. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cluster:
    name: str
    kubeconfig: Path
    context: str
    server: str
    is_kind: bool
    # The names of the nodes; for a kind cluster also those of their containers.
    nodes: tuple[str, ...]
    # To be added to the environment of `docker` and `kind`; empty for the default engine.
    docker_environment: Mapping[str, str]
    # The environment of `kubectl`, `helm` and client libraries is complete with this added.

    @property
    def environment(self) -> Mapping[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig), **self.docker_environment}


@dataclass(frozen=True)
class Images:
    """Full references; equal references mean equal content. Empty: not asked for."""

    operator: str
    agent: str = ""
    # The agent with a provider for tests and the demo in terraform's local mirror.
    agent_test: str = ""
    # The same two for OpenTofu.
    agent_tofu: str = ""
    agent_tofu_test: str = ""
