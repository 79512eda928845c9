"""Servers in the cluster, for tasks that ask them something; each goes with its namespace.

One never says a word, one has a git repository, one has private ones, one keeps states of the http backend. Called
by the fixtures of the suite.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import backends, git_repository, git_server, private_git
from tests.agent_terraform import certificates
from tests.backends import faults, http_state
from tests.e2e.installation import CONTAINER_SECURITY, POD_SECURITY, RUNS, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import SOURCES, source
from tests.git_repository import Repository

PRIVATE_GREETING = "of the second repository"
_SILENT = "import socket, signal; s = socket.create_server(('', 8080), backlog=512); signal.pause()"
_BUNDLE = "network.bundle"
_PRIVATE = "private-git-server"
_SERVE = f"git clone --quiet --mirror /given/{_BUNDLE} /tmp/network && exec python3 /given/git_server.py /tmp 8080"


@dataclass(frozen=True)
class PublishedRepository:
    """`first` is on the branch `stable`, `second` on `main`; terraform runs in `envs/prod`."""

    url: str
    stalled_url: str
    """The same, but a fetch gets the half of what it asked for, and then nothing."""
    first: str
    second: str


def stay_silent(installation: Installation) -> str:
    """Its host and port."""
    host, _ = _serve(installation, "silent", {"command": ["python3", "-c", _SILENT]})
    return host


def publish(installation: Installation, folder: Path) -> PublishedRepository:
    """A repository is made in `folder`, and served from a pod."""
    repository = Repository.make(folder / "network")
    files: dict[str, str | bytes] = {
        "envs/prod/main.tf": source("shared_module"),
        "modules/greeting/main.tf": source("greeting_of", text="first"),
        "incompressible": random.Random(0).randbytes(200_000),  # so that the half of it is a while from its end
    }
    first = repository.commit(files)
    repository.git("branch", "stable")
    second = repository.commit({"modules/greeting/main.tf": source("greeting_of", text="second")})
    bundle = folder / _BUNDLE
    repository.git("bundle", "create", "--quiet", str(bundle), "--all", "HEAD")

    name = "git-server"
    given = {_BUNDLE: bundle, "git_server.py": Path(git_server.__file__)}
    encoded = {key: base64.b64encode(path.read_bytes()).decode() for key, path in given.items()}
    named = {"name": name, "namespace": RUNS}
    installation.kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "binaryData": encoded})
    container: Json = {"command": ["sh", "-c", _SERVE], "volumeMounts": [{"name": "given", "mountPath": "/given"}]}
    host, _ = _serve(installation, name, container, {"name": "given", "configMap": {"name": name}})
    return PublishedRepository(f"http://{host}/network", f"http://{host}/stalled/network", first, second)


@dataclass(frozen=True)
class PrivateRepositories:
    """As `pods/private_git_server.py` has made them, in the words that it tells them."""

    urls: Mapping[str, str]
    """By https and by ssh."""
    commits: Mapping[str, str]
    """Of `network`, by branch: https, ssh, submodule; terraform runs in `envs/prod`."""
    sha256: str
    username: str
    password: str
    ca: str
    identity: str
    stranger: str
    """A key that is not let in."""
    known_hosts: str
    of_another_host: str
    """A line of such a file, with another key at the same address."""

    def secret(self, way: str) -> dict[str, str]:
        """What opens them."""
        if way == "ssh":
            return {"identity": self.identity, "known_hosts": self.known_hosts}
        return {"username": self.username, "password": self.password}


def publish_privately(installation: Installation) -> PrivateRepositories:
    files = {
        "private_git_server.py": Path(__file__).parent / "pods" / "private_git_server.py",
        "main.tf": SOURCES / "private_network.tf",
        "tests/private_git.py": Path(private_git.__file__),
        "tests/git_repository.py": Path(git_repository.__file__),
        "tests/agent_terraform/certificates.py": Path(certificates.__file__),
    }
    texts = {path: file.read_text() for path, file in files.items()}
    texts["module.tf"] = source("greeting_of", text=PRIVATE_GREETING)
    keys = {path: path.replace("/", ".") for path in texts}
    installation.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": _PRIVATE, "namespace": RUNS},
            "data": {keys[path]: text for path, text in texts.items()},
        }
    )
    container: Json = {
        "image": installation.images.git_server,
        "command": ["sh", "-c", 'PYTHONPATH="$PYTHONPATH:/given" exec python3 /given/private_git_server.py /given'],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "given", "mountPath": "/given"}],
    }
    items = [{"key": key, "path": path} for path, key in keys.items()]
    _, pod = _serve(
        installation, _PRIVATE, container, {"name": "given", "configMap": {"name": _PRIVATE, "items": items}}
    )
    known = json.loads(installation.kubectl("--namespace", RUNS, "exec", pod, "--", "cat", "/tmp/known.json"))
    return PrivateRepositories(**known)


@dataclass(frozen=True)
class HttpStates:
    installation: Installation
    host: str
    pod: str
    _secret: str

    def backend(self, name: str) -> Json:
        """Of a task whose state has that name."""
        address = f"http://{self.host}/state/{name}"
        config = {"address": address, "lock_address": address, "unlock_address": address}
        return {"type": "http", "config": config, "configFrom": [{"secretRef": {"name": self._secret}}]}

    def seen(self, name: str) -> Json:
        """The addresses of its resources, and its lock, as the server has them now."""
        path = f"/api/v1/namespaces/{RUNS}/pods/{self.pod}:8080/proxy/seen/{name}"
        found: Json = json.loads(self.installation.kubectl("get", "--raw", path))
        return found


def keep_states(installation: Installation) -> HttpStates:
    name = "http-states"
    paths = [Path(module.__file__ or "") for module in (backends, faults, http_state)]
    files = {path.name: path.read_text() for path in paths}
    named = {"name": name, "namespace": RUNS}
    secret = {"username": "terrahalt", "password": http_state.PASSWORD}
    installation.kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": files},
        {"apiVersion": "v1", "kind": "Secret", "metadata": named, "stringData": secret},
    )
    serve = "import asyncio; from tests.backends.http_state import serve; asyncio.run(serve(8080))"
    container: Json = {
        "command": ["sh", "-c", f'PYTHONPATH="$PYTHONPATH:/given" exec python3 -c "{serve}"'],
        "volumeMounts": [{"name": "given", "mountPath": "/given/tests/backends"}],
    }
    host, pod = _serve(installation, name, container, {"name": "given", "configMap": {"name": name}})
    return HttpStates(installation, host, pod, name)


def _serve(installation: Installation, name: str, container: Json, *volumes: Json) -> tuple[str, str]:
    """A pod of this container on the first node; once it listens, its address and port 8080, and its name.

    No Service before it: nodes learn of a Service's pods some time after those are ready. Of a DaemonSet, so that
    the drain of its node leaves it where it is.
    """
    listens = {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60}
    whole = {
        "name": name,
        "image": installation.images.agent_test,
        "startupProbe": listens,
        "securityContext": CONTAINER_SECURITY,
        **container,
    }
    pod = {
        "securityContext": POD_SECURITY,
        "nodeSelector": {"kubernetes.io/hostname": installation.cluster.nodes[0]},
        "terminationGracePeriodSeconds": 0,
        "containers": [whole],
        "volumes": list(volumes),
    }
    labels = {"app": name}
    installation.kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": RUNS},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
    )
    within = ["--namespace", RUNS]
    installation.kubectl(*within, "rollout", "status", f"daemonset/{name}", "--timeout=60s")
    (running,) = installation.kubectl.get(*within, "pods", f"--selector=app={name}")["items"]
    ip = running["status"]["podIP"]
    return f"[{ip}]:8080" if ":" in ip else f"{ip}:8080", running["metadata"]["name"]
