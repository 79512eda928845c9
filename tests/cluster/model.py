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
    # Made by the tool, which may freeze its nodes or take their power.
    is_ours: bool
    # The names of the nodes; for a kind cluster also those of their containers.
    nodes: tuple[str, ...]
    # Those of them without a control plane.
    workers: tuple[str, ...]
    # To be added to the environment of `docker` and `kind`; empty for the default engine.
    docker_environment: Mapping[str, str]

    @property
    def has_one_clock(self) -> bool:
        """Whether times that were taken on different nodes compare: all nodes of kind are one machine."""
        return self.is_kind or len(self.nodes) == 1

    @property
    def environment(self) -> Mapping[str, str]:
        """With this added, that of `kubectl`, `helm` and client libraries is complete."""
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
    # Real git servers for tests, in the image of an agent.
    git_server: str = ""
