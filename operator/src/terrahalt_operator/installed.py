"""`python -m terrahalt_operator.installed`: what `helm test` runs: whether what was installed works.

Asks which version of the CRDs is served, and whether every operator is ready by its Deployment (`/readyz`). Must never
make or delete anything. Called by the chart's test.
"""

from __future__ import annotations

import asyncio
import os
import sys

from terrahalt_operator.adapters.cluster import DEPLOYMENTS, TASKS, Cluster, Json
from terrahalt_operator.errors import ClusterError, NotFound

LOOKS_EVERY_S = 1.0
READY_WITHIN_S = 90.0
"""helm install returns before the pods are ready, unless it was told to wait."""
_GROUP = TASKS[0]
_NEEDED = frozenset({"terraformtasks", "terraformtasks/status", "agentpools", "agentpools/status", "agentpools/scale"})


def main() -> None:
    problem = asyncio.run(_run(os.environ["TERRAHALT_NAMESPACE"], os.environ["TERRAHALT_DEPLOYMENT"]))
    print(problem or "the CRDs are served, and every operator is ready")
    sys.exit(bool(problem))


async def _run(namespace: str, deployment: str) -> str:
    cluster = await Cluster.connect()
    try:
        return await wait_until_it_works(cluster, namespace, deployment, READY_WITHIN_S)
    finally:
        await cluster.close()


async def wait_until_it_works(cluster: Cluster, namespace: str, deployment: str, within_s: float) -> str:
    """What does not work after so long; empty: all of it does."""
    clock = asyncio.get_running_loop().time
    until = clock() + within_s
    while True:
        try:
            problem = _missing(await _served(cluster)) or not_ready(
                await cluster.get(DEPLOYMENTS, namespace, deployment)
            )
        except ClusterError as error:
            problem = str(error)
        if not problem or clock() >= until:
            return problem
        await asyncio.sleep(LOOKS_EVERY_S)


async def _served(cluster: Cluster) -> frozenset[str]:
    try:
        return await cluster.served(_GROUP)
    except NotFound:
        return frozenset()


def _missing(served: frozenset[str]) -> str:
    missing = ", ".join(sorted(_NEEDED - served))
    if not missing:
        return ""
    version = _GROUP.removeprefix("/apis/")
    return f"the API server does not serve {missing} of {version}: apply the CRDs, see docs/install.md"


def not_ready(deployment: Json) -> str:
    """Empty: as many pods of the present template are ready as there should be."""
    wanted, status = deployment["spec"]["replicas"], deployment.get("status", {})
    meta = deployment["metadata"]
    if status.get("observedGeneration", 0) < meta["generation"]:
        return f"deployment {meta['name']}: its last change is not seen yet"
    ready = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    if ready >= wanted:
        return ""
    return f"deployment {meta['name']}: {ready} of {wanted} operators are ready: look into their logs"


if __name__ == "__main__":
    main()
