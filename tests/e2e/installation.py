"""The product, installed as its users install it: CRDs, `helm upgrade --install`, pools by the chart's values.

The pools have the engine that the suite runs with, and one of the random trials the other.

`installed()` is for one test session: it brings up the cluster, the images and the node watcher, ends
what an earlier session left behind, and takes everything away again. TERRAHALT_E2E_KEEP=1 leaves it
there to be looked at. Called by tests/conftest.py.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrahalt_operator.app import FAILED
from tests import cluster as test_cluster
from tests import engine
from tests.cluster import outages
from tests.cluster.model import Cluster, Images
from tests.crds.api_server import ESTABLISHED
from tests.e2e import node_watcher, processes
from tests.e2e.helm import RELEASE, Helm
from tests.e2e.kubectl import Json, Kubectl
from tests.e2e.node_watcher import NodeWatcher
from tests.e2e.timeline import Sighting, Timeline

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "terrahalt"
CRDS = ROOT / "crds"
SYSTEM = "terrahalt-system"
OPERATOR = "terrahalt-operator"

_RUNS, _NARROW = "terrahalt-e2e", "terrahalt-e2e-narrow"
RUNS = processes.name_of(_RUNS)
"""For tests that need an agent at once."""
NARROW = processes.name_of(_NARROW)
"""Its pool has one agent in all: a second task waits for it."""
SOAK = "terrahalt-soak"
"""For the random trials; its pool is scaled up by them."""
NAMESPACES = (*processes.names_of(_RUNS, processes.MAX_COUNT), *processes.names_of(_NARROW, processes.MAX_COUNT), SOAK)
"""Of all test processes that there can be."""
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Of every namespace of the product's, and of its tasks: what asks for more than that never starts."""
POD_SECURITY: Json = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What pods of the tests need there."""
STANDBY_WITHIN_S = 200.0
"""A container that has ended for the fifth time waits 80 s before it is started again."""
_POOLS: list[dict[str, Any]] = [
    *({"namespace": name, "minIdle": 3, "maxAgents": 20} for name in processes.names_of(_RUNS)),
    *({"namespace": name, "minIdle": 1, "maxAgents": 1} for name in processes.names_of(_NARROW)),
    {"namespace": SOAK, "minIdle": 0, "maxAgents": 60},
    {"namespace": SOAK, "minIdle": 0, "maxAgents": 30, "engine": engine.OTHER_TYPE, "name": "other"},
]
_TASKS = "terraformtasks.terrahalt.dev"
_POOL_KIND = "agentpools.terrahalt.dev"
_AGENTS = "app.kubernetes.io/name=terrahalt-agent"


@dataclass(frozen=True)
class Installation:
    cluster: Cluster
    images: Images
    kubectl: Kubectl
    helm: Helm
    timeline: Timeline
    nodes: NodeWatcher
    token: str
    """Part of each name that a test gives: no session meets the states of another."""

    def name(self, label: str) -> str:
        return f"{label}-{self.token}-{secrets.token_hex(2)}"

    # ---- the nodes

    @property
    def soak_pools(self) -> tuple[str, ...]:
        """Each with an engine of its own."""
        return tuple(pool.get("name", "default") for pool in _POOLS if pool["namespace"] == SOAK)

    @processes.disturbing
    def pause_node(self, node: str) -> None:
        self.nodes.falls_asleep(node)
        test_cluster.pause(node, self.cluster.name)

    def resume_node(self, node: str) -> None:
        """Returns when it is looked at again."""
        test_cluster.resume(node, self.cluster.name)
        self.nodes.woke(node)

    @processes.disturbing
    def stop_node(self, node: str) -> None:
        self.nodes.falls_asleep(node)
        test_cluster.stop(node, self.cluster.name)
        self.nodes.lost_power(node)

    def start_node(self, node: str) -> None:
        """Returns when it is looked at again."""
        test_cluster.start(node, self.cluster.name)
        self.nodes.woke(node)

    @processes.disturbing
    def drain_node(self, node: str) -> None:
        """Returns when its pods are gone; until `uncordon_node` it gets no new ones."""
        test_cluster.drain(node, self.cluster.name)

    def uncordon_node(self, node: str) -> None:
        test_cluster.uncordon(node, self.cluster.name)

    def bring_nodes_back(self) -> None:
        """All of them run, take pods and are looked at, whatever a test that failed left undone."""
        test_cluster.up(self.cluster.name)
        for node in list(self.nodes.asleep):
            self.nodes.woke(node)

    @processes.disturbing
    def cordon_node(self, node: str) -> None:
        self.kubectl("cordon", node)

    # ---- the API server, and what lies between a pod and all others

    def watch_states(self) -> None:
        """From here on, each version that terraform keeps of one."""
        self.nodes.close()
        self.nodes.open(with_states=True)

    @processes.disturbing
    def restart_api_server(self) -> None:
        """Returns when it answers again."""
        outages.restart_api_server(self.cluster)

    @processes.disturbing
    @contextmanager
    def etcd_frozen(self) -> Iterator[None]:
        outages.freeze_etcd(self.cluster)
        try:
            yield
        finally:
            outages.thaw_etcd(self.cluster)

    @contextmanager
    def cut_off(self, pod_uid: str) -> Iterator[bool]:
        """It hears nobody and nobody hears it meanwhile; False: it has no process that could."""
        # Its first process has the pod's network for as long as there is one.
        first = next((p for p in self.nodes.processes(pod_uid=pod_uid) if p["program"] == "pause"), None)
        if first is None:
            yield False
            return

        def do(what: Callable[[Cluster, str, int], None]) -> bool:
            """False where the pod is gone, and its network with it."""
            try:
                what(self.cluster, first["node"], first["pid"])
            except test_cluster.ClusterError:
                if self.nodes.kill(first, 0):
                    raise
                return False
            return True

        was_cut = do(outages.cut_off)
        try:
            yield was_cut
        finally:
            if was_cut:
                do(outages.let_through)

    # ---- the operator

    def operator_pod(self) -> Json | None:
        """The one that leads, or did last; None: nobody does, or its pod is on its way out."""
        name = _pod_of(self.timeline.latest("leases", SYSTEM, OPERATOR))
        seen = self.timeline.latest("pods", SYSTEM, name)
        return None if seen is None or "deletionTimestamp" in seen.object["metadata"] else seen.object

    def operator_pods(self) -> list[Json]:
        """Those that stand by, and those on their way out, which may still decide, too."""
        return [
            sighting.object
            for sighting in self.timeline.all_latest("pods", SYSTEM)
            if sighting.object["metadata"]["labels"].get("app.kubernetes.io/name") == OPERATOR
        ]

    def assert_no_operator_had_an_error(self) -> None:
        """Which ends it: another one takes over, and so no test of what becomes of tasks needs to notice.

        Of this version: one of 0.1.0 ends in no other way when its successor leads."""

        def is_ours(pod: Sighting) -> bool:
            return [container["image"] for container in pod.object["spec"]["containers"]] == [self.images.operator]

        found: dict[str, str] = {}
        for name in self.timeline.names("pods", SYSTEM, is_ours):
            for seen in self.timeline.history("pods", SYSTEM, name):
                for status in seen.status.get("containerStatuses", ()):
                    for state in (status.get("state", {}), status.get("lastState", {})):
                        ended = state.get("terminated", {})
                        if ended.get("exitCode") == FAILED:
                            found[ended["containerID"]] = f"{name} at {ended['finishedAt']}"
        assert not found, f"operators ended by an error of their own, look into their logs: {sorted(found.values())}"

    @processes.disturbing
    @contextmanager
    def without_operator(self) -> Iterator[None]:
        """Its Deployment is scaled to nothing meanwhile; afterwards another one has taken over."""
        # Not the number of pods: a rollout may be under way.
        replicas = self.kubectl.get("--namespace", SYSTEM, "deployment", OPERATOR)["spec"]["replicas"]
        epoch = self.epoch()
        scale = ("--namespace", SYSTEM, "scale", f"deployment/{OPERATOR}")
        self.kubectl(*scale, "--replicas=0")
        try:
            self.timeline.until(lambda: not self.operator_pods(), 60, "the operator to be gone")
            # One that stood by may have led for a moment, before its own SIGTERM.
            epoch = self.epoch()
            yield
        finally:
            self.kubectl(*scale, f"--replicas={replicas}")
        self.wait_for_take_over(epoch)

    @processes.disturbing
    @contextmanager
    def without_api(self) -> Iterator[None]:
        """The API server is away meanwhile; afterwards it answers, and an operator has taken over."""
        epoch = self.epoch()
        test_cluster.take_api_away(self.cluster.name)
        try:
            yield
        finally:
            test_cluster.bring_api_back(self.cluster.name)
        self.wait_for_take_over(epoch)

    def operator_process(self) -> Json | None:
        """Of the one that leads, on its node; None: it is not running."""
        return self.process_of(self.operator_pod())

    def process_of(self, pod: Json | None) -> Json | None:
        """Of an operator's pod."""
        lives = self.nodes.processes(pod_uid=pod["metadata"]["uid"]) if pod else []
        return next((p for p in lives if "terrahalt_operator" in p["command"]), None)

    @processes.disturbing
    def kill_operator(self, number: int = signal.SIGKILL) -> bool:
        """To the process of the one that leads; False where it was not running at that moment."""
        process = self.operator_process()
        return process is not None and self.nodes.kill(process, number)

    @processes.disturbing
    def replace_operator_pod(self) -> None:
        """Of the one that leads; at once: a container that was killed again and again is started ever later."""
        pod = self.operator_pod()
        if pod is not None:
            name = pod["metadata"]["name"]
            self.kubectl(
                "--namespace", SYSTEM, "delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found"
            )

    def epoch(self) -> int:
        """Raised by every operator that takes over."""
        return _epoch_of(self.timeline.latest("leases", SYSTEM, OPERATOR))

    def wait_for_take_over(self, since_epoch: int) -> Sighting:
        """By another one than had that epoch; when it did."""

        def look() -> Sighting | None:
            seen = self.timeline.history("leases", SYSTEM, OPERATOR)
            before = {_holder_of(s) for s in seen if _epoch_of(s) <= since_epoch}
            after = (s for s in seen if _epoch_of(s) > since_epoch)
            return next((s for s in after if _holder_of(s) not in before | {""}), None)

        return self.timeline.until(look, 90, "another operator that takes over")

    def renew_operators(self) -> None:
        """A kubelet starts ever later what has ended again and again, so pods whose container has are replaced."""

        def worn() -> list[str]:
            pods = [pod for pod in self.operator_pods() if "deletionTimestamp" not in pod["metadata"]]
            restarted = [p for p in pods if any(s["restartCount"] for s in p["status"].get("containerStatuses", ()))]
            return [pod["metadata"]["name"] for pod in restarted]

        if names := worn():
            self.kubectl("--namespace", SYSTEM, "delete", "pods", *names, "--wait=false", "--ignore-not-found")
            self.timeline.until(lambda: not set(worn()) & set(names), 60, f"{names} to be on their way out")

    def standby(self) -> Json | None:
        """The pod of one that could take over at once from the one that leads."""
        leader = self.operator_pod()
        ready = [pod for pod in self.operator_pods() if _is_ready(pod)]
        return next((pod for pod in ready if leader and pod["metadata"]["uid"] != leader["metadata"]["uid"]), None)

    def wait_for_standby(self) -> Json:
        return self.timeline.until(self.standby, STANDBY_WITHIN_S, "an operator that stands by")

    # ---- agents

    def agent_pods(self, namespace: str, pool: str) -> list[Json]:
        """As they were seen last."""
        pods = [sighting.object for sighting in self.timeline.all_latest("pods", namespace)]
        return [pod for pod in pods if pod["metadata"]["labels"].get("terrahalt.dev/pool") == pool]

    def agents_without_task(self, namespace: str) -> list[Json]:
        """Of the pool `default`: those that never had one and are not on their way out; they may be yet to start."""
        pods = self.agent_pods(namespace, "default")
        fresh = [pod for pod in pods if "terrahalt.dev/last-task" not in pod["metadata"]["labels"]]
        return [pod for pod in fresh if "deletionTimestamp" not in pod["metadata"]]

    def idle_agents(self, namespace: str, at_least: int = 1) -> list[Json]:
        """Of the pool `default`: those that run and never had a task, as soon as there are so many."""

        def look() -> list[Json] | None:
            # The pods themselves: the pool's status is a second behind.
            pods = self.agents_without_task(namespace)
            running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
            return running if len(running) >= at_least else None

        found = self.timeline.until(look, 120, f"{at_least} agents in {namespace} that run and never had a task")
        self.wait_for_idle(namespace, at_least)
        return found

    def agent_process(self, pod_uid: str) -> Json:
        """The agent itself, the first process of its container."""
        (agent,) = [p for p in self.nodes.processes(pod_uid=pod_uid) if "terrahalt_agent" in p["command"]]
        return agent

    # ---- pools

    def scale_pool(self, namespace: str, idle: int, pool: str = "default") -> None:
        self.kubectl("--namespace", namespace, "scale", "agentpool", pool, f"--replicas={idle}")
        self.wait_for_idle(namespace, idle, pool=pool)

    def wait_for_idle(self, namespace: str, idle: int, within_s: float = 120, pool: str = "default") -> None:
        self.timeline.until(
            lambda: self.pool_status(namespace, pool).get("idle", 0) >= idle,
            within_s,
            lambda: (
                f"{idle} idle agents in {namespace}: {self.pool_status(namespace, pool)}\n{self._pools_now(namespace)}"
            ),
        )

    def _pools_now(self, namespace: str) -> str:
        """By the API server, and by the operator that leads: whoever looks may be the one who is late."""
        shown = self.kubectl.attempt("--namespace", namespace, "get", "agentpools,pods", "--output", "wide")
        leader = self.operator_pod()
        name = leader["metadata"]["name"] if leader else ""
        log = self.kubectl.attempt("--namespace", SYSTEM, "logs", name, "--tail=40")
        return f"{shown.stdout}{shown.stderr}\n{name}:\n{log.stdout}{log.stderr}"

    def pool_status(self, namespace: str, pool: str = "default") -> Json:
        seen = self.timeline.latest("agentpools", namespace, pool)
        return seen.status if seen else {}

    # ---- there and away

    def put(self) -> None:
        """Also over an installation that is there already."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRDS))
        for what in ESTABLISHED:
            self.kubectl("wait", what, "--timeout=60s", f"crd/{_TASKS}", f"crd/{_POOL_KIND}")
        for namespace in (*NAMESPACES, SYSTEM, node_watcher.NAMESPACE):
            self._await_namespace_gone_if_it_goes(namespace)
        for namespace in (*NAMESPACES, SYSTEM):
            named = {"name": namespace, "labels": RESTRICTED}
            self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": named})
        if not self._can_upgrade():
            # A session that was ended in the middle of this leaves a release that is upgraded only after a rollback,
            # or not at all.
            if self.helm.state():
                self.helm.attempt("rollback", RELEASE, str(self.helm.revision()))
            if not self._can_upgrade():
                self._uninstall()
                self.helm.upgrade(CHART, self.values())
        self.kubectl(
            "--namespace", SYSTEM, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=120s", within_s=130
        )

    def _can_upgrade(self) -> bool:
        """And does; an earlier session may have scaled pools."""
        return self.helm.attempt_upgrade(CHART, self.values(), "--force-conflicts").returncode == 0

    def values(self) -> Json:
        """Of the chart."""
        return {
            "operator": {"image": {"reference": self.images.operator}},
            "agent": {
                "image": {"reference": self.images.agent_test},
                "openTofu": {"image": {"reference": self.images.agent_tofu_test}},
            },
            # A small node has no room for agents that nobody needs.
            "pools": [{"engine": engine.TYPE, "name": "default", "idleTimeoutSeconds": 0} | pool for pool in _POOLS],
        }

    def end_leftovers(self) -> None:
        """Tasks of an earlier session: their runs are wound down by the operator, or given up."""
        for namespace in NAMESPACES:
            self.kubectl("--namespace", namespace, "delete", _TASKS, "--all", "--wait=false")
        for namespace in NAMESPACES:
            done = self.kubectl.attempt(
                "--namespace", namespace, "wait", _TASKS, "--all", "--for=delete", "--timeout=60s", within_s=70
            )
            if done.returncode:
                self._take_finalizers(_TASKS, namespace)

    def remove(self) -> None:
        """In the order that the chart's NOTES give: tasks and pools while the operator can end their agents."""
        self.end_leftovers()
        for namespace in NAMESPACES:
            self.kubectl("--namespace", namespace, "delete", _POOL_KIND, "--all")
        for namespace in NAMESPACES:
            arguments = ["--namespace", namespace, "wait", "pods", f"--selector={_AGENTS}", "--for=delete"]
            done = self.kubectl.attempt(*arguments, "--timeout=60s", within_s=70)
            if done.returncode:
                self._take_finalizers("pods", namespace)
        self._uninstall()
        self.kubectl("delete", "namespace", *NAMESPACES, SYSTEM, "--ignore-not-found", "--wait=false")

    def _uninstall(self) -> None:
        # Without asking what else on this cluster would need the operator: what other suites left is not judged here.
        self.helm("uninstall", RELEASE, "--ignore-not-found", "--no-hooks")

    def _take_finalizers(self, kind: str, namespace: str) -> None:
        for item in self.kubectl.get("--namespace", namespace, kind)["items"]:
            name, patch = item["metadata"]["name"], '{"metadata":{"finalizers":null}}'
            self.kubectl.attempt("--namespace", namespace, "patch", kind, name, "--type=merge", f"--patch={patch}")
            self.kubectl.attempt("--namespace", namespace, "delete", kind, name, "--ignore-not-found", "--wait=false")

    def _await_namespace_gone_if_it_goes(self, namespace: str) -> None:
        found = self.kubectl.find("namespace", namespace)
        if found is None or "deletionTimestamp" not in found["metadata"]:
            return
        # Nobody is there to finish what an aborted session left: agents and pools keep their finalizers.
        for kind in (_TASKS, "pods", _POOL_KIND):
            self._take_finalizers(kind, namespace)
        self.kubectl("wait", f"namespace/{namespace}", "--for=delete", "--timeout=60s", within_s=70)


def _holder_of(lease: Sighting | None) -> str:
    return str(lease.object.get("spec", {}).get("holderIdentity") or "") if lease and not lease.is_deleted else ""


def _pod_of(lease: Sighting | None) -> str:
    return _holder_of(lease).partition("_")[0]


def _epoch_of(lease: Sighting | None) -> int:
    annotations = lease.object["metadata"].get("annotations", {}) if lease else {}
    return int(annotations.get("terrahalt.dev/epoch", "0"))


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


@contextmanager
def installed() -> Iterator[Installation]:
    cluster = test_cluster.up()
    images = test_cluster.images()
    kubectl = Kubectl(test_cluster.tool("kubectl"), cluster.environment)
    timeline = Timeline()
    installation = Installation(
        cluster=cluster,
        images=images,
        kubectl=kubectl,
        helm=Helm(test_cluster.tool("helm"), cluster.environment, SYSTEM),
        timeline=timeline,
        nodes=NodeWatcher(cluster, kubectl, timeline),
        token=secrets.token_hex(2),
    )
    keep = bool(os.environ.get("TERRAHALT_E2E_KEEP"))

    def put() -> None:
        installation.put()
        installation.end_leftovers()
        installation.nodes.put(images.agent_test)

    def remove() -> None:
        if not keep:
            installation.remove()
            installation.nodes.remove()

    with processes.shared(put, remove):
        installation.nodes.open()
        try:
            installation.wait_for_idle(RUNS, 1)
            yield installation
            installation.assert_no_operator_had_an_error()
        finally:
            installation.nodes.close()
