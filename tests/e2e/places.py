"""All that can be looked at of an installation and its tasks, as bytes with a name, for who searches it for secrets.

What is packed is unpacked: the values of Secrets, and what was compressed in them. Called by test_secrets.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e import node_watcher
from tests.e2e.installation import RUNS, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.planted import Place
from tests.e2e.tasks import RunningTask

_LOOK_ROUND = (Path(__file__).parent / "node" / "look_round.py").read_text()
_METRICS = "import urllib.request as r; print(r.urlopen('http://localhost:8081/metrics').read().decode())"
_NODE = "/proc/1/root"
"""The node's own files, as a pod with its pid namespace has them."""
_GZIP = zlib.MAX_WBITS | 16
"""Of which a first part can be read, too: a state that is kept may lie in several Secrets."""
_OWN_VOLUMES = ("kubernetes.io~secret", "kubernetes.io~projected")
"""What a pod mounts of Secrets; none of the agent's doing."""


def objects(installation: Installation) -> Iterator[Place]:
    """Of every kind and namespace, as the API server has them now."""
    kinds = installation.kubectl("api-resources", "--verbs=list", "--output=name").split()
    arguments = ("get", ",".join(kinds), "--all-namespaces", "--show-managed-fields", "--output=json")
    for item in json.loads(installation.kubectl(*arguments, within_s=120))["items"]:
        meta = item["metadata"]
        name = f"{item['kind']} {meta.get('namespace', '')}/{meta['name']}"
        yield Place(name, json.dumps(item, ensure_ascii=False).encode())
        if item["kind"] == "Secret":
            for key, value in (item.get("data") or {}).items():
                raw = base64.b64decode(value)
                yield Place(f"{name} {key}", raw)
                if raw.startswith(b"\x1f\x8b"):
                    yield Place(f"{name} {key}, unpacked", zlib.decompressobj(_GZIP).decompress(raw))


def versions(task: RunningTask) -> Iterator[Place]:
    """Of a task: what its status has said meanwhile."""
    for seen in task.history:
        yield Place(f"version of TerraformTask {task.namespace}/{task.name}", json.dumps(seen.object).encode())


def logs(installation: Installation, namespace: str, pods: Iterable[str]) -> Iterator[Place]:
    for pod in pods:
        said = installation.kubectl("--namespace", namespace, "logs", pod, "--all-containers")
        yield Place(f"log of {namespace}/{pod}", said.encode())


def metrics(installation: Installation, agents: Iterable[str]) -> Iterator[Place]:
    """Of all operators, and of agents that live."""
    for pod in installation.operator_pods():
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{name}:8080/proxy/metrics"
        yield Place(f"metrics of operator {name}", installation.kubectl("get", "--raw", path).encode())
    for name in agents:
        told = installation.kubectl("--namespace", RUNS, "exec", name, "--", "python3", "-c", _METRICS)
        yield Place(f"metrics of agent {name}", told.encode())


@contextmanager
def processes(installation: Installation) -> Iterator[list[Place]]:
    """Of all nodes meanwhile: command lines, and environments; it is filled when it is left."""
    found: list[Place] = []
    command = ("python3", "-c", _LOOK_ROUND)
    streams = [
        installation.kubectl.stream("--namespace", node_watcher.NAMESPACE, "exec", "--stdin", pod, "--", *command)
        for pod in _watchers(installation)
    ]
    try:
        yield found
        for stream in streams:
            said, _ = stream.communicate("enough\n", timeout=60)
            for what, texts in json.loads(said).items():
                found += [Place(f"{what}: {text[:200]}", text.encode()) for text in texts]
        for process in list(installation.timeline.processes):
            found.append(Place(f"commands: {process.text[:200]}", process.text.encode()))
    finally:
        for stream in streams:
            stream.kill()
            stream.communicate()


def disk(installation: Installation, pods: Sequence[Json]) -> Iterator[Place]:
    """Of agents' pods: their volumes and logs on the nodes; of those that live, what they write to."""
    for watcher, node in _watchers(installation).items():
        here = [pod for pod in pods if pod["spec"]["nodeName"] == node]
        uids = [pod["metadata"]["uid"] for pod in here]
        living = [p for uid in uids for p in installation.nodes.processes(pod_uid=uid) if p["program"] != "pause"]
        inside = [f"/proc/{p['pid']}/root{path}" for p in living for path in ("/work", "/tmp", "/dev/shm")]
        outside = [f"{_NODE}/var/lib/kubelet/pods/{uid}" for uid in uids]
        logged = [f"{_NODE}/var/log/pods/{pod['metadata']['namespace']}_*_{pod['metadata']['uid']}" for pod in here]
        pack = " ".join(["tar", *(f"--exclude={name}" for name in _OWN_VOLUMES), "-cf", "-", "--ignore-failed-read"])
        command = f"{pack} $(ls -d {' '.join([*inside, *outside, *logged])} 2>/dev/null)"
        for name, content in _unpacked(_run(installation, watcher, command)):
            yield Place(f"disk: {name}", content)


def _unpacked(archive: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            file = files.extractfile(member) if member.isfile() else None
            # A name, or what a link leads to, may tell as much.
            yield member.name, f"{member.name} {member.linkname}\n".encode() + (file.read() if file else b"")


def _run(installation: Installation, watcher: str, command: str) -> bytes:
    kubectl = installation.kubectl
    words = ["--namespace", node_watcher.NAMESPACE, "exec", watcher, "--", "sh", "-c", command]
    return subprocess.run(
        [str(kubectl.program), *words], env=dict(kubectl.environment), capture_output=True, check=True, timeout=60
    ).stdout


def _watchers(installation: Installation) -> dict[str, str]:
    """Pods that see all of their node -> its name. Other tests have pods there, too."""
    selector = f"--selector=app={node_watcher.NAME}"
    pods = installation.kubectl.get("--namespace", node_watcher.NAMESPACE, "pods", selector)["items"]
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}
