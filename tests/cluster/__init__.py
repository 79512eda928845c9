"""A real Kubernetes cluster for the tests and the demo: this is all that others call.

    cluster = up()              # the cluster of TERRAHALT_KUBECONFIG, or kind
    references = images()       # the images of this checkout, built and put where it finds them
    tool("kubectl")             # a program in the pinned version
    down()

Each function may be called again at any time and does only what is missing. ClusterError says in its
text what to do; nothing else is raised on purpose.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster import cache, engine, given, kind_cluster, tools
from tests.cluster import foreign_images as foreign_image_building
from tests.cluster import images as image_building
from tests.cluster.architecture import Architecture
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster, Images
from tests.cluster.progress import Progress
from tests.cluster.speech import say

DEFAULT_NAME = "terrahalt"

__all__ = [
    "DEFAULT_NAME", "Cluster", "ClusterError", "Images", "down", "foreign_images", "images", "status", "tool",
    "up",
]  # fmt: skip


def up(name: str = DEFAULT_NAME, *, workers: int = 0) -> Cluster:
    """`workers`: nodes of a kind cluster besides the control plane."""
    with cache.lock():
        return _up(name, workers, Progress())


def images(name: str = DEFAULT_NAME) -> Images:
    """Brings the cluster up when it does not run: there is nothing else to load them into."""
    with cache.lock():
        progress = Progress()
        cluster = _up(name, None, progress)
        prefix = image_building.prefix_for(cluster)
        on = Engine(cluster.docker_environment.get("DOCKER_HOST")) if cluster.is_kind else engine.start()
        references = image_building.build(on, prefix, progress)
        image_building.deliver(cluster, on, references, progress)
        return references


def foreign_images(architecture: Architecture) -> dict[str, Path]:
    """Archives of the images for another architecture than this machine's; takes root, and no cluster."""
    with cache.lock():
        return foreign_image_building.build(architecture, Progress())


def down(name: str = DEFAULT_NAME) -> None:
    """Of a given cluster nothing was made, so nothing is removed."""
    if given.find():
        say(f"the cluster of {given.VARIABLE} is yours and stays as it is")
        return
    with cache.lock():
        kind_cluster.down(name)


def status(name: str = DEFAULT_NAME) -> Cluster | None:
    """None when it does not run."""
    return given.find() or kind_cluster.find(name)


def tool(name: str) -> Path:
    """One of `tools.NAMES`."""
    with cache.lock():
        return tools.tool(name, Progress(), on=engine.running())


def _up(name: str, workers: int | None, progress: Progress) -> Cluster:
    cluster = given.find()
    if cluster:
        given.announce(cluster)
        return cluster
    return kind_cluster.up(name, workers, progress)
