"""A real Kubernetes cluster for the tests and the demo: this is all that others call.

    cluster = up()              # the cluster of TERRAHALT_KUBECONFIG, or kind
    images()                    # the images of this checkout, built and loaded
    tool("kubectl")             # a program in the pinned version
    down()

Each function may be called again at any time and does only what is missing. ClusterError says in its
text what to do; nothing else is raised on purpose.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster import cache, engine, kind_cluster, tools
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster, Images
from tests.cluster.progress import Progress

DEFAULT_NAME = "terrahalt"

__all__ = ["DEFAULT_NAME", "Cluster", "ClusterError", "Images", "down", "status", "tool", "up"]


def up(name: str = DEFAULT_NAME) -> Cluster:
    with cache.lock():
        return kind_cluster.up(name, Progress())


def down(name: str = DEFAULT_NAME) -> None:
    with cache.lock():
        kind_cluster.down(name)


def status(name: str = DEFAULT_NAME) -> Cluster | None:
    """None when it does not run."""
    return kind_cluster.find(name)


def tool(name: str) -> Path:
    with cache.lock():
        return tools.tool(name, engine=engine.running())
