"""A real Kubernetes cluster for the tests and the demo: this is all that others call.

    cluster = up()              # the cluster of TERRAHALT_KUBECONFIG, or kind
    references = images()       # the images of this checkout, built and put where it finds them
    images(project=checkout(c)) # those of a commit, whose files are in that folder
    tool("kubectl")             # a program in the pinned version
    plugin()                    # `kubectl terrahalt` of this checkout
    pause("terrahalt-worker")   # and resume, stop, start, drain, uncordon: what can happen to a node
    down()

Each function may be called again at any time and does only what is missing. ClusterError says in its
text what to do; nothing else is raised on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import api_server, cache, engine, former, given, kind_cluster, nodes, tools
from tests.cluster import foreign_images as foreign_image_building
from tests.cluster import images as image_building
from tests.cluster import kubectl_plugin as plugin_building
from tests.cluster.architecture import Architecture
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster, Images
from tests.cluster.progress import Progress
from tests.cluster.speech import say

DEFAULT_NAME = os.environ.get("TERRAHALT_CLUSTER") or "terrahalt"
ENGINES = ("terraform", "tofu")

__all__ = [
    "DEFAULT_NAME", "Cluster", "ClusterError", "Images", "bring_api_back", "checkout", "down", "drain",
    "foreign_images", "images", "in_container", "pause", "plugin", "resume", "start", "status", "stop",
    "take_api_away", "tool", "uncordon", "up",
]  # fmt: skip


def up(name: str = DEFAULT_NAME, *, workers: int | None = None) -> Cluster:
    """`workers`: nodes of a kind cluster besides the control plane; None: as many as it has, or none."""
    with cache.lock():
        return _up(name, workers, Progress())


def images(
    name: str = DEFAULT_NAME,
    *,
    engines: Sequence[str] = ENGINES,
    servers: bool = True,
    project: Path = cache.PROJECT,
) -> Images:
    """Brings the cluster up when it does not run: there is nothing else to load them into.

    `engines`: of which there are to be agents. OpenTofu has to be compiled first where no release can be had.
    `servers`: also those that tests run beside them. `project`: of whose sources, this checkout's or a commit's."""
    with cache.lock():
        progress = Progress()
        cluster = _up(name, None, progress)
        prefix = image_building.prefix_for(cluster)
        on = Engine(cluster.docker_environment.get("DOCKER_HOST")) if cluster.is_kind else engine.start()
        references = image_building.build(on, prefix, progress, engines, project, servers=servers)
        image_building.deliver(cluster, on, references, progress)
        return references


def checkout(commit: str) -> Path:
    """A folder with the files of that commit of this repository. Nobody may write there."""
    with cache.lock():
        return cache.make(former.checkout(commit))


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


def plugin() -> Path:
    with cache.lock():
        return plugin_building.program(Progress())


def pause(node: str, name: str = DEFAULT_NAME) -> None:
    nodes.pause(_running(name), node)


def resume(node: str, name: str = DEFAULT_NAME) -> None:
    nodes.resume(_running(name), node)


def stop(node: str, name: str = DEFAULT_NAME) -> None:
    nodes.stop(_running(name), node)


def start(node: str, name: str = DEFAULT_NAME) -> None:
    nodes.start(_running(name), node)


def drain(node: str, name: str = DEFAULT_NAME) -> None:
    """Returns when its pods are gone."""
    nodes.drain(_running(name), node, tool("kubectl"))


def uncordon(node: str, name: str = DEFAULT_NAME) -> None:
    nodes.uncordon(_running(name), node, tool("kubectl"))


def take_api_away(name: str = DEFAULT_NAME) -> None:
    """Returns when nobody answers any more; what runs on the nodes goes on."""
    api_server.take_away(_known(name))


def bring_api_back(name: str = DEFAULT_NAME) -> None:
    """Returns when the control plane works again, and all nodes are Ready."""
    api_server.bring_back(_known(name), tool("kubectl"))


def in_container(cluster: Cluster, node: str, container: str, command: Sequence[str]) -> list[str]:
    """What to run to have this command run in that container, also while the API server is away."""
    return nodes.in_container(cluster, node, container, command)


def _running(name: str) -> Cluster:
    return _found(name, status(name))


def _known(name: str) -> Cluster:
    """Whether its API server answers or not."""
    return _found(name, given.find() or kind_cluster.recorded(name))


def _found(name: str, cluster: Cluster | None) -> Cluster:
    if cluster is None:
        raise ClusterError(f"the cluster {name} does not run: make cluster-up WORKERS=1")
    return cluster


def _up(name: str, workers: int | None, progress: Progress) -> Cluster:
    cluster = given.find()
    if cluster:
        given.announce(cluster)
        return cluster
    return kind_cluster.up(name, workers, progress)
