"""A kind cluster on a Docker engine: made, found again, removed.

It records what it made in clusters/<name>/ of the cache and removes no other cluster. The user's own
kubeconfig is never read or written. Called by the package's functions, which hold the lock.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.cluster import cache, commands, engine, host_state, node_image_choice, nodes, pins, private_engine, tools
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.model import Cluster
from tests.cluster.progress import Progress

READY_WITHIN_S = 180
READYZ_WITHIN_S = 5
# Other ranges than kind's and Docker's usual ones: the machine may itself be in such a network.
POD_SUBNET = "10.245.0.0/16"
SERVICE_SUBNET = "10.97.0.0/16"
# A fork bomb in one pod must not take the machine along.
PODS_PIDS_LIMIT = 4096
NETWORK = "kind"


def _folder(name: str) -> Path:
    return cache.root() / "clusters" / name


def find(name: str) -> Cluster | None:
    """The cluster if it runs and answers."""
    cluster = recorded(name)
    return cluster if cluster is not None and readyz(cluster) == HTTPStatus.OK else None


def recorded(name: str) -> Cluster | None:
    """The cluster as it was made, whether it answers or not."""
    record = _read_record(name)
    if record is None:
        return None
    on = Engine(record["docker_host"])
    return Cluster(
        name=name,
        kubeconfig=_folder(name) / "kubeconfig",
        context=f"kind-{name}",
        server=record["server"],
        is_kind=True,
        is_ours=True,
        nodes=tuple(record["nodes"]),
        workers=tuple(node for node in record["nodes"] if node != f"{name}-control-plane"),
        docker_environment=on.environment,
    )


def readyz(cluster: Cluster) -> int:
    """The HTTP status that its API server answers with; 0: nobody answers.

    Anybody may ask an API server this; its certificate tells that it is the one of the kubeconfig."""
    try:
        authority = re.search(r"certificate-authority-data: (\S+)", cluster.kubeconfig.read_text(encoding="utf-8"))
        if not authority:
            return 0
        trust = ssl.create_default_context(cadata=base64.b64decode(authority[1]).decode("ascii"))
        # Never through a proxy of the environment: it is on this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        with opener.open(f"{cluster.server}/readyz", timeout=READYZ_WITHIN_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError):
        return 0


def up(name: str, workers: int | None, progress: Progress) -> Cluster:
    """`workers` are nodes besides the control plane, which takes pods as well, so that one makes two
    nodes. None: as many as it has, or none.

    When it runs already, whatever it was made from, only nodes that were paused, stopped or drained
    are brought back. Raises ClusterError."""
    cluster = find(name)
    if cluster:
        if workers is not None and len(cluster.nodes) != 1 + workers:
            raise ClusterError(
                f"the cluster {name} runs with {len(cluster.nodes)} nodes, {1 + workers} are asked for: "
                "remove it first (make cluster-down), or give another name (CLUSTER=)"
            )
        nodes.bring_all_back(cluster, tools.kubectl(Engine(cluster.docker_environment.get("DOCKER_HOST")), progress))
        return cluster
    before = host_state.snapshot()
    if engine.needs_start():
        with progress.step("start a Docker engine", cold="40 s"):
            on = engine.start()
    else:
        on = engine.start()
    image = node_image_choice.ensure(on, progress)
    kind = tools.on_path("kind", pins.KIND, "version") or progress.make(tools.kind()) / "kind"
    folder = _folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before.save(folder / "before.json")
    with progress.step(f"create the cluster {name}", cold="30 s"):
        _create(name, workers or 0, on, kind, image, folder, progress)
    cluster = find(name)
    if cluster is None:
        raise ClusterError(f"the cluster {name} was created but does not answer: `make cluster-down`")
    return cluster


def _create(name: str, workers: int, on: Engine, kind: Path, image: str, folder: Path, progress: Progress) -> None:
    configuration = folder / "kind.yaml"
    configuration.write_text(_configuration(workers), encoding="utf-8")
    kubeconfig = folder / "kubeconfig"
    environment = {**on.environment, "KUBECONFIG": str(kubeconfig)}
    # What an interrupted run left of it.
    commands.run([kind, "delete", "cluster", "--name", name], log=f"kind-{name}", env=environment)
    had_network = (
        not _network_is_ours() and NETWORK in on.output(["network", "ls", "--format", "{{.Name}}"]).splitlines()
    )
    record: dict[str, object] = {"docker_host": on.host, "had_network": had_network, "server": "", "nodes": []}
    _write_record(folder, record)
    commands.run(
        [kind, "create", "cluster", "--name", name, "--image", image,
         "--config", configuration, "--kubeconfig", kubeconfig],
        log=f"kind-{name}",
        env=environment,
    )  # fmt: skip
    kubectl = [tools.kubectl(on, progress), "--kubeconfig", kubeconfig]
    deadline = time.monotonic() + READY_WITHIN_S
    # Each is told to wait only once it exists.
    for what in (
        ["wait", "--for=condition=Ready", "node", "--all"],
        ["-n", "kube-system", "rollout", "status", "daemonset/kube-proxy"],
        ["-n", "kube-system", "rollout", "status", "deployment/coredns"],
        ["-n", "default", "wait", "--for=create", "serviceaccount/default"],
    ):
        left_s = max(1, int(deadline - time.monotonic()))
        commands.run([*kubectl, *what, f"--timeout={left_s}s"], log=f"kind-{name}")
    if workers:
        # kind takes it away by itself only where there is no other node.
        commands.run(
            [*kubectl, "taint", "nodes", f"{name}-control-plane", "node-role.kubernetes.io/control-plane-"],
            log=f"kind-{name}",
        )
    server = commands.output([*kubectl, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])
    made = commands.output([kind, "get", "nodes", "--name", name], env=on.environment).split()
    _write_record(folder, {**record, "server": server, "nodes": sorted(made)})


def _read_record(name: str) -> dict[str, Any] | None:
    try:
        record = json.loads((_folder(name) / "cluster.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write_record(folder: Path, record: dict[str, object]) -> None:
    draft = folder / "cluster.json.draft"
    draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
    draft.rename(folder / "cluster.json")


def _configuration(workers: int) -> str:
    kubelet = ["failCgroupV1: false", f"podPidsLimit: {PODS_PIDS_LIMIT}"]
    patches = {"KubeletConfiguration": kubelet}
    if not private_engine.may_use(private_engine.CAP_SYS_RESOURCE):
        # Both would lower their oom_score_adj, which takes that capability.
        kubelet += ["oomScoreAdj: 0", "featureGates: {KubeletInUserNamespace: true}"]
        patches["KubeProxyConfiguration"] = ["oomScoreAdj: 0"]
    lines = [
        "kind: Cluster",
        "apiVersion: kind.x-k8s.io/v1alpha4",
        "networking:",
        f"  podSubnet: {POD_SUBNET}",
        f"  serviceSubnet: {SERVICE_SUBNET}",
        "kubeadmConfigPatches:",
    ]
    for kind, settings in patches.items():
        lines += ["- |", f"  kind: {kind}", *(f"  {setting}" for setting in settings)]
    lines += ["nodes:", "- role: control-plane", *["- role: worker"] * workers]
    return "\n".join(lines) + "\n"


def down(name: str) -> None:
    """Removes the cluster and, with the last one, what was started for it. No-op without one."""
    folder = _folder(name)
    record = _read_record(name)
    if record:
        on = Engine(record["docker_host"])
        if on.answers():
            _delete(name, on, had_network=record["had_network"])
        elif not on.is_private:
            raise ClusterError(
                f"the Docker engine of the cluster {name} ({on.host or 'the default one'}) does not "
                "answer: start it and run this again"
            )
        before = host_state.load(folder / "before.json")
        if before and not _others(name):
            host_state.restore_sysctls(before)
    shutil.rmtree(folder, ignore_errors=True)
    if not _names():
        private_engine.stop()


def _delete(name: str, on: Engine, *, had_network: bool) -> None:
    kind = tools.tool("kind", Progress())
    kubeconfig = _folder(name) / "kubeconfig"
    commands.run(
        [kind, "delete", "cluster", "--name", name, "--kubeconfig", kubeconfig],
        log=f"kind-{name}",
        env=on.environment,
    )
    if not had_network and not _others(name):
        # In use by somebody else's cluster it stays, as it must.
        with contextlib.suppress(CommandFailed):
            on.output(["network", "rm", NETWORK])


def _network_is_ours() -> bool:
    """kind makes it with the first cluster; it is ours when that was one of ours."""
    records = (_read_record(name) for name in _names())
    return any(record is not None and not record["had_network"] for record in records)


def _names() -> list[str]:
    return [path.parent.name for path in (cache.root() / "clusters").glob("*/cluster.json")]


def _others(name: str) -> list[str]:
    return [other for other in _names() if other != name]
