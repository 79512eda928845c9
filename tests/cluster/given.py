"""The cluster that a user names with TERRAHALT_KUBECONFIG: described, never made or removed.

Called by the package's functions before they think of kind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster import commands
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.model import Cluster
from tests.cluster.speech import say

VARIABLE = "TERRAHALT_KUBECONFIG"


def find() -> Cluster | None:
    """None when the user named none. Raises ClusterError when the one named does not answer."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    kubeconfig = Path(path).expanduser().resolve()
    if not kubeconfig.is_file():
        raise ClusterError(f"{VARIABLE}={path}: there is no such file")
    program = shutil.which("kubectl")
    if program is None:
        raise ClusterError(f"{VARIABLE} is set, and its cluster needs the kubectl of your own: install it")
    kubectl = [program, "--kubeconfig", str(kubeconfig)]
    control_plane = "--selector=node-role.kubernetes.io/control-plane"
    names = [*kubectl, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}", "--request-timeout=20s"]
    try:
        context = commands.output([*kubectl, "config", "current-context"])
        server = commands.output(
            [*kubectl, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]
        )
        nodes = commands.output(names).split()
        leading = commands.output([*names, control_plane]).split()
    except CommandFailed as failure:
        raise ClusterError(f"the cluster of {VARIABLE}={path} does not answer: {failure}") from failure
    is_kind = context.startswith("kind-")
    return Cluster(
        name=context.removeprefix("kind-") if is_kind else context,
        kubeconfig=kubeconfig,
        context=context,
        server=server,
        is_kind=is_kind,
        is_ours=False,
        nodes=tuple(nodes),
        workers=tuple(node for node in nodes if node not in leading),
        docker_environment={},
    )


def announce(cluster: Cluster) -> None:
    say(f"the cluster of {VARIABLE} is used: context {cluster.context}, server {cluster.server},")
    say(f"nodes {', '.join(cluster.nodes)}")
