"""All that `make bench-scale` needs around its operator, made on the test cluster and removed again.

Nothing of it is there before; an operator that is installed would work on the same tasks, so then nothing is measured.
CRDs that were there stay as they are. Called by `__main__`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml

from tests import cluster as test_cluster
from tests.bench import PROJECT, kubernetes_api, machine
from tests.bench.kubernetes_api import Api, ApiError, Json
from tests.bench.progress import say
from tests.bench.scale import node, operator_process
from tests.bench.scale.agents import Agents, simulated
from tests.bench.scale.following import listed
from tests.bench.scale.operator_process import Operator
from tests.bench.scale.plain import PLAIN
from tests.bench.scale.tasks import API, Tasks, at_once, make_namespace, never_mind

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_GONE_S = 600.0
_ESTABLISHED_S = 30.0


class NotToBeMeasured(Exception):
    """The text says what to do."""


@dataclass(slots=True)
class Stage:
    api: Api
    tasks: Tasks
    agents: Agents
    kubectl: str
    environment: Mapping[str, str]
    log: Path
    facts: Json = field(default_factory=dict)
    operator: Operator | None = None

    async def start(self, profile: Path | None = None, **environment: str) -> Operator:
        """In place of the one before, which has ended. Returns once it leads."""
        self.operator = await operator_process.start({**self.environment, **environment}, self.log, profile)
        return self.operator


@asynccontextmanager
async def a_stage(pools: int, agents: int, log: Path) -> AsyncIterator[Stage]:
    """Raises NotToBeMeasured, ClusterError, ApiError."""
    say("cluster: up")
    cluster = await asyncio.to_thread(test_cluster.up)
    kubectl = str(await asyncio.to_thread(test_cluster.tool, "kubectl"))
    environment = {**os.environ, **cluster.environment}
    machine.allow_open_files(agents + 1000)
    async with AsyncExitStack() as on_exit:
        api = await on_exit.enter_async_context(kubernetes_api.connected(kubectl, environment))
        watching = await on_exit.enter_async_context(kubernetes_api.connected(kubectl, environment))
        await _nobody_else(api)
        tasks = Tasks(api, pools)
        namespaces = [operator_process.NAMESPACE, PLAIN, *tasks.namespaces]
        made: list[str] = []
        on_exit.push_async_callback(_remove_crds, api, made)
        on_exit.push_async_callback(_remove, api, namespaces)
        await _make_crds(api, made)
        await make_namespace(api, operator_process.NAMESPACE)
        simulator = await on_exit.enter_async_context(simulated(kubectl, cluster.environment, agents))
        stage = Stage(api, tasks, simulator, kubectl, cluster.environment, log)
        tasks.watches_by(watching)
        seeing = asyncio.create_task(tasks.watch(), name="watch of the tasks")

        def over(watch: asyncio.Task[None]) -> None:
            if not watch.cancelled() and (error := watch.exception()) is not None:
                tasks.broke(error)

        seeing.add_done_callback(over)
        version = await api.get("/version")
        stage.facts = {"kubernetes": version["gitVersion"], "nodes": list(cluster.nodes)}
        try:
            await tasks.make_pools()
            await make_namespace(api, PLAIN)
            yield stage
        finally:
            seeing.cancel()
            if stage.operator is not None:
                await stage.operator.end()
            await _let_go(api)


async def _nobody_else(api: Api) -> None:
    selector = "labelSelector=app.kubernetes.io%2Fname%3Dterrahalt-operator"
    if found := (await api.get(f"/apis/apps/v1/deployments?{selector}"))["items"]:
        where = found[0]["metadata"]["namespace"]
        raise NotToBeMeasured(f"an operator is installed in {where}: take another cluster (CLUSTER=), or uninstall it")
    if await api.find(f"{node.NODES}/{node.NAME}") is not None:
        raise NotToBeMeasured(f"node {node.NAME} is there: another bench runs, or one was killed (kubectl delete node)")


async def _make_crds(api: Api, made: list[str]) -> None:
    """Those that are not there; `made` tells which."""
    for path in sorted((PROJECT / "crds").glob("*.yaml")):
        crd: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = crd["metadata"]["name"]
        if await api.find(f"{_CRDS}/{name}") is None:
            await api.create(_CRDS, crd)
            made.append(name)

        def is_established(found: Json) -> bool:
            conditions = found.get("status", {}).get("conditions") or ()
            return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

        await api.until(f"{_CRDS}/{name}", is_established, _ESTABLISHED_S, f"CRD {name} should be served")


async def _remove_crds(api: Api, crds: list[str]) -> None:
    for name in crds:
        await never_mind(api.delete(f"{_CRDS}/{name}"))


async def _let_go(api: Api) -> None:
    """Of all that waits for an operator or a kubelet which is no more."""
    say("cleaning up: finalizers and pods")
    for path, query in ((f"{API}/terraformtasks", ""), (f"{API}/agentpools", ""), ("/api/v1/pods", _ON_NODE)):
        with suppress(ApiError):  # the CRDs may not be there yet
            items, _ = await listed(api, path, query)
            kind, prefix = path.rpartition("/")[2], path.rpartition("/")[0]
            metas = [i["metadata"] for i in items if i["metadata"]["namespace"].startswith("terrahalt-scale-")]
            paths = [f"{prefix}/namespaces/{m['namespace']}/{kind}/{m['name']}" for m in metas]
            await at_once(never_mind(api.patch(each, {"metadata": {"finalizers": None}})) for each in paths)
            if kind == "pods":
                await at_once(never_mind(api.delete(f"{each}?gracePeriodSeconds=0")) for each in paths)


_ON_NODE = f"&fieldSelector=spec.nodeName%3D{node.NAME}"


async def _remove(api: Api, namespaces: list[str]) -> None:
    say("cleaning up: namespaces and node")
    for name in namespaces:
        await never_mind(api.delete(f"/api/v1/namespaces/{name}"))
    await node.remove(api)

    def are_gone(found: Json) -> bool:
        return not any(n["metadata"]["name"] in namespaces for n in found["items"])

    try:
        await api.until("/api/v1/namespaces", are_gone, _GONE_S, "the namespaces of the bench should be gone", 1.0)
    except (TimeoutError, aiohttp.ClientError) as error:
        say(f"something is left: {error}")
