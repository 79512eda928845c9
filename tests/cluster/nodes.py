"""What can happen to one node of a kind cluster: frozen, without power, drained, and back again.

A node is a container, so `pause` freezes its kubelet and all its pods in the middle of whatever they
do, and `stop` is a power cut. Only workers: with the control plane the API server would go, and every
question with it. It must never touch a node of a cluster that the tool did not make, except by
kubectl. Called by the package's functions and by `kind_cluster`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tests.cluster import commands
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.model import Cluster

RUNNING, PAUSED = "running", "paused"
# An agent that ends its run by the ladder has 403 s for it.
DRAINED_WITHIN_S = 420
READY_WITHIN_S = 120
PAUSE_TRIES = 3
"""While processes of it start or wait for the disk, the runtime may give up, and lets go on what it had frozen."""


def pause(cluster: Cluster, node: str) -> None:
    """No process on it runs until `resume`. The cluster calls it NotReady after 40 to 50 s."""
    on = _engine_of(cluster, node, "pause")
    for left in reversed(range(PAUSE_TRIES)):
        if _state(on, node) == PAUSED:
            return
        try:
            on.output(["pause", node])
            return
        except CommandFailed as error:
            if not left or "unable to freeze" not in str(error):
                raise


def resume(cluster: Cluster, node: str) -> None:
    """What was frozen goes on; the node is Ready some 10 s later."""
    on = _engine_of(cluster, node, "resume")
    if _state(on, node) == PAUSED:
        on.output(["unpause", node])


def stop(cluster: Cluster, node: str) -> None:
    """At once, as when its power fails: nothing on it gets the time to say anything."""
    on = _engine_of(cluster, node, "stop")
    # The engine thaws what it kills.
    if _state(on, node) in (RUNNING, PAUSED):
        on.output(["kill", node])


def start(cluster: Cluster, node: str) -> None:
    """After `stop`; its kubelet then tells what has become of each container."""
    on = _engine_of(cluster, node, "start")
    if _state(on, node) not in (RUNNING, PAUSED):
        on.output(["start", node])


def drain(cluster: Cluster, node: str, kubectl: Path) -> None:
    """As an administrator does it, without --force: pods that nobody would make anew stop it."""
    _check_known(cluster, node)
    command = _kubectl(cluster, kubectl, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data")
    commands.run([*command, f"--timeout={DRAINED_WITHIN_S}s"], log=f"nodes-{cluster.name}")


def uncordon(cluster: Cluster, node: str, kubectl: Path) -> None:
    _check_known(cluster, node)
    commands.run(_kubectl(cluster, kubectl, "uncordon", node), log=f"nodes-{cluster.name}")


def bring_all_back(cluster: Cluster, kubectl: Path) -> None:
    """Whatever an earlier session did to them. No-op where all nodes run and take pods."""
    if not cluster.workers:
        return
    began = time.time()
    away = [node for node in cluster.workers if _state(_engine_of(cluster, node, "start"), node) != RUNNING]
    for node in away:
        resume(cluster, node)
        start(cluster, node)
    for node in away:
        # The node may still be called Ready from before; its kubelet renews this Lease every 10 s.
        await_renewal(cluster, kubectl, "kube-node-lease", node, began, f"docker logs {node}")
    found = json.loads(commands.output(_kubectl(cluster, kubectl, "get", "nodes", "--output=json")))
    for node in found["items"]:
        if node["spec"].get("unschedulable"):
            uncordon(cluster, node["metadata"]["name"], kubectl)
    commands.run(
        _kubectl(cluster, kubectl, "wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_WITHIN_S}s"),
        log=f"nodes-{cluster.name}",
    )


def await_renewal(cluster: Cluster, kubectl: Path, namespace: str, lease: str, since: float, look: str) -> None:
    """Until whoever has that Lease has renewed it after `since`; `look`: the command that tells why it does not."""
    command = _kubectl(cluster, kubectl, f"--namespace={namespace}", "get", "lease", lease)
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        renewed = commands.output([*command, "--output=jsonpath={.spec.renewTime}"])
        if datetime.fromisoformat(renewed.replace("Z", "+00:00")).timestamp() > since:
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{lease} was started again, and does not renew its Lease: look with `{look}`, "
                "or begin anew with make cluster-down"
            )
        time.sleep(0.5)


def in_container(cluster: Cluster, node: str, container: str, command: Sequence[str]) -> list[str]:
    """What to run to have this command run in a container of the node's runtime, whatever the API server does.

    Its input and output are the caller's; it ends when its input does, if it reads that."""
    _check_known(cluster, node)
    name = f"tests-{secrets.token_hex(4)}"
    execute = ["ctr", "--namespace", "k8s.io", "tasks", "exec", "--exec-id", name, container, *command]
    return Engine(cluster.docker_environment.get("DOCKER_HOST")).command(["exec", "--interactive", node, *execute])


def _engine_of(cluster: Cluster, node: str, what: str) -> Engine:
    _check_known(cluster, node)
    if not cluster.is_ours:
        raise ClusterError(
            f"{what} {node}: the cluster {cluster.context} is yours, and its machines are not touched: do it by "
            "hand where they run, or use a kind cluster of the tool (without TERRAHALT_KUBECONFIG, WORKERS=1)"
        )
    if node not in cluster.workers:
        others = ", ".join(cluster.workers) or "there is none: make cluster-down, then make cluster-up WORKERS=1"
        raise ClusterError(f"{what} {node}: it has the API server of {cluster.name}; take a worker ({others})")
    return Engine(cluster.docker_environment.get("DOCKER_HOST"))


def _check_known(cluster: Cluster, node: str) -> None:
    if node not in cluster.nodes:
        raise ClusterError(f"the cluster {cluster.name} has no node {node}; it has {', '.join(cluster.nodes)}")


def _state(on: Engine, node: str) -> str:
    return on.output(["container", "inspect", "--format", "{{.State.Status}}", node])


def _kubectl(cluster: Cluster, kubectl: Path, *arguments: str) -> list[str]:
    return [str(kubectl), "--kubeconfig", str(cluster.kubeconfig), *arguments]
