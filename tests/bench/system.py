"""What the cluster parts run on: the installed operator, and a namespace, pool and witness of the bench's own.

An operator that is already installed is used as it is, because two would fight over the same tasks; else
the chart is installed as a user would, and uninstalled at the end (the CRDs stay, as Helm leaves them). Others
may replace it meanwhile: each round asks `identity` before and after, and a round with two answers does not
count. Called by `__main__` and the parts that use the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests import cluster as test_cluster
from tests.bench import kubernetes_api
from tests.bench.kubernetes_api import Api, ApiError, Json
from tests.bench.progress import say
from tests.bench.witness import Witness, a_witness
from tests.cluster.model import Cluster

NAMESPACE = "terrahalt-bench"
SYSTEM = "terrahalt-system"
POOL = "bench"
TASKS = f"/apis/terrahalt.dev/v1alpha1/namespaces/{NAMESPACE}/terraformtasks"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_POOLS = f"/apis/terrahalt.dev/v1alpha1/namespaces/{NAMESPACE}/agentpools"
_CHART = Path(__file__).parents[2] / "charts" / "terrahalt"
_READY_S = 90.0
_GONE_S = 60.0
_SETTLES_S = 0.5
"""The start of a new agent still echoes in kubelet and operator."""


class NoOperator(Exception):
    """There is nothing to measure; the text says what to do."""


@dataclass(slots=True)
class System:
    api: Api
    witness: Witness
    image: str
    node: str
    """On which all that is measured runs."""
    cluster: Cluster
    pool_manifests: str
    run: Commands
    facts: Json = field(default_factory=dict)

    async def identity(self) -> str:
        """Which operator answers now: its pod and its image. Raises NoOperator."""
        return await _identity(self.api)

    async def clear(self) -> None:
        """Ends what a round has left, which would keep an agent from the next one."""
        await self.api.delete(TASKS)
        what = "the tasks that are deleted should be gone"
        await self.api.until(TASKS, lambda tasks: not tasks["items"], _GONE_S, what)

    async def operators(self) -> list[Json]:
        """The pods of all that are installed. Raises NoOperator."""
        return await _operators(self.api)

    @asynccontextmanager
    async def a_pool(self, name: str, **spec: object) -> AsyncIterator[str]:
        """Another pool, on the same node; gone at the end, and its agents before it."""
        made = {
            "apiVersion": "terrahalt.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"serviceAccountName": "terrahalt-agent", "podTemplate": on_node(self.node), **spec},
        }
        await self._remove_pool(name)
        await self.api.create(_POOLS, made)
        try:
            yield name
        finally:
            await self._remove_pool(name)

    async def _remove_pool(self, name: str) -> None:
        await self.api.delete(f"{_POOLS}/{name}")

        def gone(pools: Json) -> bool:
            return all(pool["metadata"]["name"] != name for pool in pools["items"])

        await self.api.until(_POOLS, gone, _GONE_S, f"the deleted pool {name} should be gone")

    async def await_idle_agent(self, pool: str = POOL) -> Json:
        """The pod of a warm agent that the witness watches, with none starting or ending beside it."""
        if pool == POOL and await self.api.find(f"{_POOLS}/{POOL}") is None:
            say(f"the pool of the bench has been removed by others: it is made anew in {NAMESPACE}")
            await _make_namespace(self.run, self.pool_manifests)
        (pod,) = await self.await_idle_agents(pool, 1)
        await self.witness.saw("watching", pod["metadata"]["name"], _READY_S)
        return pod

    async def await_idle_agents(self, pool: str, count: int) -> list[Json]:
        """The pods of so many warm agents, with none starting or ending beside them."""

        def settled(pods: Json) -> bool:
            alive = _alive(pods)
            return len(alive) == count and all(_is_idle(pod) for pod in alive)

        what = f"the pool {pool} should have {count} idle agents and no other one"
        pods = await self.api.until(_agents(pool), settled, _READY_S, what)
        await asyncio.sleep(_SETTLES_S)
        return _alive(pods)

    async def await_no_agent(self, pool: str) -> None:
        """Of a pool that keeps none waiting."""
        path, what = _agents(pool), f"pool {pool} should have no agent"
        await self.api.until(path, lambda pods: not _alive(pods), _READY_S, what)
        await asyncio.sleep(_SETTLES_S)


@dataclass(frozen=True, slots=True)
class Commands:
    """kubectl and helm, for what is set up and not timed."""

    environment: Mapping[str, str]
    kubectl: str
    helm: str

    async def __call__(self, *command: str, text: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(text.encode())
        if process.returncode:
            raise NoOperator(f"{' '.join(command[:4])} ... failed: {err.decode(errors='replace').strip()}")
        return out.decode()


@asynccontextmanager
async def a_system() -> AsyncIterator[System]:
    """Removes at the end what it has made, but the cluster. Raises NoOperator, ClusterError."""
    say("cluster: up, and which operator is installed")
    cluster = await asyncio.to_thread(test_cluster.up)
    kubectl, helm = await asyncio.to_thread(lambda: [str(test_cluster.tool(name)) for name in ("kubectl", "helm")])
    run = Commands(cluster.environment, kubectl, helm)
    async with kubernetes_api.connected(kubectl, cluster.environment) as api, AsyncExitStack() as on_exit:
        deployment = await on_exit.enter_async_context(_an_operator(api, run))
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        image = environment["TERRAHALT_AGENT_IMAGE"]
        watched = environment.get("TERRAHALT_WATCH_NAMESPACES", "")
        if watched and NAMESPACE not in watched.split(","):
            raise NoOperator(f"the installed operator watches {watched} only: install it without watchNamespaces")
        node = (cluster.workers or cluster.nodes)[0]
        pool = {"namespace": NAMESPACE, "name": POOL, "minIdle": 1, "maxAgents": 2, "podTemplate": on_node(node)}
        manifests = await run(
            *(helm, "template", "terrahalt", str(_CHART), "-n", SYSTEM, "--show-only", "templates/pools.yaml"),
            *("--values", "-"),
            text=json.dumps({"pools": [pool]}),
        )
        await until_gone(api, NAMESPACE)
        say(f"cluster: namespace {NAMESPACE} with a pool and a witness, agents of image {image}")
        await _make_namespace(run, manifests)
        version = await api.get("/version")
        about_node = (await api.get(f"/api/v1/nodes/{node}"))["status"]["nodeInfo"]
        try:
            async with a_witness(api, NAMESPACE, image, node) as witness:
                system = System(api, witness, image, node, cluster, manifests, run)
                system.facts = {
                    "kubernetes": version["gitVersion"],
                    "runtime": about_node["containerRuntimeVersion"],
                    "nodes": list(cluster.nodes),
                    "operator": await system.identity(),
                    "agent_image": image,
                    "one_clock": cluster.is_kind,
                }
                yield system
        finally:
            await _remove(api)


@asynccontextmanager
async def _an_operator(api: Api, run: Commands) -> AsyncIterator[Json]:
    """Its Deployment."""
    if found := await _installed(api):
        yield found
        return
    try:
        yield await _install(api, run)
    finally:
        await _uninstall(api, run)


async def _identity(api: Api) -> str:
    pods = await _operators(api)
    return ", ".join(sorted(f"{p['metadata']['name']} ({p['spec']['containers'][0]['image']})" for p in pods))


async def _operators(api: Api) -> list[Json]:
    found = await api.get(
        f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io%2Fname%3Dterrahalt-operator"
    )
    pods: list[Json] = [p for p in found["items"] if "deletionTimestamp" not in p["metadata"]]
    if not pods:
        raise NoOperator(f"no operator runs in {SYSTEM}: somebody removed it; run the bench again")
    return pods


async def _installed(api: Api) -> Json | None:
    try:
        found = await api.get(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments")
    except ApiError:
        return None
    deployments: list[Json] = [d for d in found["items"] if d["metadata"]["name"].endswith("operator")]
    return deployments[0] if deployments else None


async def _install(api: Api, run: Commands) -> Json:
    say(f"cluster: no operator in {SYSTEM}, installing the chart")
    images = await asyncio.to_thread(test_cluster.images, engines=("terraform",))
    await _until_another_is_gone(api, run)
    await run(run.kubectl, "apply", "--server-side", "--force-conflicts", "-f", str(_CHART / "crds"))
    values = {
        "operator": {"image": {"reference": images.operator}},
        "agent": {"image": {"reference": images.agent_test}},
        "pools": [],
    }
    await run(
        *(run.helm, "upgrade", "--install", "terrahalt", str(_CHART), "-n", SYSTEM, "--create-namespace"),
        *("--values", "-", "--wait", "--timeout", "3m"),
        text=json.dumps(values),
    )
    deployment = await _installed(api)
    if deployment is None:
        raise NoOperator(f"helm installed no operator into {SYSTEM}")
    return deployment


async def _until_another_is_gone(api: Api, run: Commands) -> None:
    """A suite that has just ended leaves its namespace to be deleted, and nothing can be made in it until then."""
    try:
        found = await api.get(f"/api/v1/namespaces/{SYSTEM}")
    except ApiError:
        return
    if found["status"]["phase"] == "Terminating":
        await run(run.kubectl, "wait", f"namespace/{SYSTEM}", "--for=delete", "--timeout=120s")


async def _make_namespace(run: Commands, manifests: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}  # for the witness
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    await run(run.kubectl, "apply", "-f", "-", text=json.dumps(namespace))
    await run(run.kubectl, "apply", "-f", "-", text=manifests)


async def until_gone(api: Api, namespace: str) -> None:
    """Where it is being deleted. Raises TimeoutError."""

    def gone(found: Json) -> bool:
        return not any(
            n["metadata"]["name"] == namespace and "deletionTimestamp" in n["metadata"] for n in found["items"]
        )

    await api.until("/api/v1/namespaces", gone, _GONE_S, f"namespace {namespace}, which is deleted, should be gone")


async def _remove(api: Api) -> None:
    """Tasks and pool first, so that the operator itself ends what runs, and with it the agents."""
    for path in (TASKS, f"{_POOLS}/{POOL}", f"/api/v1/namespaces/{NAMESPACE}"):
        with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await api.delete(path)


async def _uninstall(api: Api, run: Commands) -> None:
    """Once it has ended its agents: nobody else takes their finalizers off."""
    try:
        await until_gone(api, NAMESPACE)
        await run(run.helm, "uninstall", "terrahalt", "-n", SYSTEM, "--wait", "--ignore-not-found", "--no-hooks")
        await api.delete(f"/api/v1/namespaces/{SYSTEM}")
    except (NoOperator, ApiError, aiohttp.ClientError, TimeoutError) as error:
        say(f"cluster: the operator that was installed for the bench stays: {error}")


def on_node(node: str) -> Json:
    """A pod template."""
    return {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}


def _agents(pool: str) -> str:
    return f"{PODS}?labelSelector=terrahalt.dev/pool%3D{pool}"


def _alive(pods: Json) -> list[Json]:
    return [pod for pod in pods["items"] if pod["status"].get("phase") in ("Pending", "Running")]


def _is_idle(pod: Json) -> bool:
    has_run = "terrahalt.dev/task" in pod["metadata"]["labels"]
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
    return is_ready and not has_run
