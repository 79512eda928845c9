"""`python3 -m tests.cluster up|down|status|images|images-arm64|tools`, what the Makefile's targets call.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict

from tests import cluster as test_cluster
from tests.cluster import commands, tools
from tests.cluster.architecture import ARM64
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster
from tests.cluster.speech import say


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python3 -m tests.cluster")
    arguments.add_argument("action", choices=("up", "down", "status", "images", "images-arm64", "tools"))
    arguments.add_argument("--name", default=test_cluster.DEFAULT_NAME, help="of the kind cluster")
    arguments.add_argument("--workers", type=int, default=0, help="nodes besides the control plane")
    chosen = arguments.parse_args(words)
    # As Ctrl-C: what runs is ended, drafts are removed, the lock is given back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return act(chosen.action, chosen.name, chosen.workers)
    except ClusterError as error:
        say(f"cluster tool: {error}")
        return 1
    except KeyboardInterrupt:
        commands.end_all_children()
        say("stopped; what is finished is kept, and the next run goes on from there")
        return 130


def act(action: str, name: str, workers: int) -> int:
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
    return 0


def show(cluster: Cluster) -> None:
    print(f"# cluster {cluster.name}: {cluster.server}, nodes {', '.join(cluster.nodes)}")
    for variable, value in cluster.environment.items():
        print(f"export {variable}={value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
