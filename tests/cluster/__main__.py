"""`python3 -m tests.cluster up|down|status|images|images-arm64|tools|go-lint`, `pause NODE`: what `make` calls.

Of the kubectl plugin also: plugin, plugin-dist.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict

from tests import cluster as test_cluster
from tests.cluster import cache, commands, golang, kubectl_plugin, tools
from tests.cluster.architecture import ARM64
from tests.cluster.cache import PROJECT
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster
from tests.cluster.progress import Progress
from tests.cluster.speech import say

ON_NODES = {
    "pause": test_cluster.pause,
    "resume": test_cluster.resume,
    "stop": test_cluster.stop,
    "start": test_cluster.start,
    "drain": test_cluster.drain,
    "uncordon": test_cluster.uncordon,
}
OF_THE_PLUGIN = ("plugin", "plugin-dist")
DIST = PROJECT / "dist"


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python3 -m tests.cluster")
    actions = ("up", "down", "status", "images", "images-arm64", "tools", "go-lint", *OF_THE_PLUGIN, *ON_NODES)
    arguments.add_argument("action", choices=actions)
    arguments.add_argument("node", nargs="?", help=f"for {', '.join(ON_NODES)}")
    arguments.add_argument("--name", default=test_cluster.DEFAULT_NAME, help="of the kind cluster")
    arguments.add_argument("--workers", type=int, help="nodes besides the control plane")
    arguments.add_argument("--address", default="", help="of plugin-dist: where its archives are downloaded from")
    chosen = arguments.parse_args(words)
    if (chosen.action in ON_NODES) != (chosen.node is not None):
        arguments.error(f"{chosen.action} takes {'the name of a node' if chosen.node is None else 'no node'}")
    # As Ctrl-C: what runs is ended, drafts are removed, the lock is given back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if chosen.node is not None:
            ON_NODES[chosen.action](chosen.node, chosen.name)
            return 0
        if chosen.action in OF_THE_PLUGIN:
            make_plugin(chosen.action, chosen.address)
            return 0
        return act(chosen.action, chosen.name, chosen.workers)
    except ClusterError as error:
        say(f"cluster tool: {error}")
        return 1
    except KeyboardInterrupt:
        commands.end_all_children()
        say("stopped; what is finished is kept, and the next run goes on from there")
        return 130


def act(action: str, name: str, workers: int | None) -> int:
    match action:
        case "up":
            show(test_cluster.up(name, workers=workers))
        case "down":
            test_cluster.down(name)
        case "status":
            cluster = test_cluster.status(name)
            if cluster is None:
                print(f"the cluster {name} does not run (make cluster-up)")
                return 3
            show(cluster)
        case "images":
            for kind, reference in asdict(test_cluster.images(name)).items():
                print(f"{kind}={reference}")
        case "images-arm64":
            for target, archive in test_cluster.foreign_images(ARM64).items():
                print(f"{target}={archive}")
        case "tools":
            for each in tools.NAMES:
                print(f"{each}={test_cluster.tool(each)}")
        case "go-lint":
            print(golang.check())
    return 0


def make_plugin(action: str, address: str) -> None:
    with cache.lock():
        if action == "plugin":
            print(kubectl_plugin.put(DIST, Progress()))
        else:
            print(kubectl_plugin.pack(DIST, Progress(), address=address))


def show(cluster: Cluster) -> None:
    print(f"# cluster {cluster.name}: {cluster.server}, nodes {', '.join(cluster.nodes)}")
    for variable, value in cluster.environment.items():
        print(f"export {variable}={value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
