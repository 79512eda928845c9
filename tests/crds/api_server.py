"""The real API server as a function: an object goes in, what is wrong with it comes out.

Talks through `kubectl proxy`, so that every way to authenticate works and a request takes
milliseconds. Used by the tests of the CRDs and of the chart; everything is a dry run unless asked
otherwise, and what is not lies in a namespace that `namespace` removes again.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from terrahalt_operator.api import API_VERSION, GROUP, POOL_KIND, POOL_PLURAL, TASK_KIND, TASK_PLURAL, VERSION
from terrahalt_operator.api.crd import KINDS, root_schema
from terrahalt_operator.api.schema import Kind
from tests.cluster import tool, up

ROOT = Path(__file__).resolve().parents[2]
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
PLURALS = {TASK_KIND: TASK_PLURAL, POOL_KIND: POOL_PLURAL}

T = TypeVar("T")

PUBLISHED_WITHIN_S = 30
"""The API server hands out a new CRD's schema, and new permissions, some seconds after it has them."""


@dataclass(frozen=True)
class Cause:
    field: str
    message: str


@dataclass(frozen=True)
class Answer:
    code: int
    body: dict[str, Any]

    @property
    def is_accepted(self) -> bool:
        return self.code < 300

    @property
    def causes(self) -> list[Cause]:
        """What is wrong, by field; empty if nothing is, or if it is nothing about fields."""
        found = self.body.get("details", {}).get("causes", []) if not self.is_accepted else []
        return [Cause(cause.get("field", ""), cause["message"]) for cause in found]


class ApiServer:
    def __init__(self, kubectl: Path, environment: Mapping[str, str], address: str) -> None:
        self._kubectl = kubectl
        self._environment = {**os.environ, **environment}
        self._address = address

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What it prints on stdout. Raises AssertionError with what it said when it fails."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run([str(self._kubectl), *arguments], self._environment, stdin)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        accept: str = "",
        who: str = "",
    ) -> Answer:
        """As the user `who`, by impersonation; empty: as the administrator."""
        request = urllib.request.Request(
            f"http://{self._address}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": content,
                "Accept": accept or "application/json",
                **({"Impersonate-User": who} if who else {}),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode()
            # What the API server does not know at all, as a group without CRDs, it answers in plain text.
            return Answer(error.code, json.loads(text) if text.startswith("{") else {"message": text})

    def create(self, obj: Mapping[str, Any], namespace: str, *, for_real: bool = False) -> Answer:
        return self.request("POST", f"{path_of(obj['kind'], namespace)}{_mode(for_real)}", obj)

    def patch(
        self,
        obj: Mapping[str, Any],
        namespace: str,
        patch: Any,
        *,
        subresource: str = "",
        accept: str = "",
        who: str = "",
        for_real: bool = False,
    ) -> Answer:
        """A list is a JSON patch, a mapping a merge patch."""
        name = obj["metadata"]["name"]
        return self.request(
            "PATCH",
            f"{path_of(obj['kind'], namespace)}/{name}{subresource}{_mode(for_real)}",
            patch,
            content=JSON_PATCH if isinstance(patch, list) else MERGE_PATCH,
            accept=accept,
            who=who,
        )

    @contextmanager
    def namespace(self, purpose: str, **labels: str) -> Iterator[str]:
        """A namespace that is gone afterwards, whatever an operator of the cluster did with what is in it."""
        name = f"{purpose}-{uuid.uuid4().hex[:8]}"
        # With its labels: PodSecurity goes by its own watch, and would see them a moment after it saw the namespace.
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("create", "--filename=-", stdin=json.dumps(made))
        try:
            yield name
        finally:
            # First what an operator adds its finalizers to: it may be gone before they are.
            for kind in (TASK_KIND, POOL_KIND):
                path = path_of(kind, name)
                self.request("DELETE", path)
                for item in self.request("GET", path).body.get("items", []):
                    one = f"{path}/{item['metadata']['name']}"
                    self.request("PATCH", one, {"metadata": {"finalizers": None}}, content=MERGE_PATCH)
            self.kubectl("delete", "namespace", name, "--wait=false")


def run(command: list[str], environment: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=stdin, env=dict(environment), capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )


def path_of(kind: str, namespace: str) -> str:
    match kind:
        case "Pod":
            return f"/api/v1/namespaces/{namespace}/pods"
        case _:
            return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURALS[kind]}"


def _mode(for_real: bool) -> str:
    # Strict: a field that the schema does not have is an error and is not dropped in silence.
    return "?fieldValidation=Strict" + ("" if for_real else "&dryRun=All")


@contextmanager
def connected() -> Iterator[ApiServer]:
    """The test cluster's, with the CRDs of this checkout."""
    environment = up().environment
    kubectl = tool("kubectl")
    with subprocess.Popen(
        [str(kubectl), "proxy", "--port=0"], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as proxy:
        try:
            assert proxy.stdout is not None
            greeting = proxy.stdout.readline()
            assert "Starting to serve on " in greeting, f"kubectl proxy: {greeting!r}"
            server = ApiServer(kubectl, environment, greeting.split()[-1])
            _install_crds(server)
            yield server
        finally:
            proxy.terminate()


def _install_crds(server: ApiServer) -> None:
    # Server-side, as the annotation of a client-side apply has no room for a CRD.
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    for what in ESTABLISHED:
        server.kubectl("wait", what, "--timeout=60s", "-f", str(ROOT / "crds"))
    for kind in KINDS:
        _wait_until_served(server, kind)


def _wait_until_served(server: ApiServer, kind: Kind) -> None:
    """Established is true of an older schema too: what is handed out last is what counts."""
    ours = root_schema(kind)["properties"]

    def serves_ours(served: Mapping[str, Any]) -> bool:
        return all(served.get(part) == ours[part] for part in ("spec", "status"))

    assert serves_ours(eventually(lambda: published(server, kind.kind), serves_ours)), (
        f"the API server does not hand out this checkout's {kind.kind}"
    )


def published(api: ApiServer, kind: str) -> dict[str, Any]:
    """The schema of a kind as the API server hands it out; empty if it does not yet."""
    schemas = api.request("GET", f"/openapi/v3/apis/{API_VERSION}").body.get("components", {}).get("schemas", {})
    for schema in schemas.values():
        if {"group": GROUP, "version": VERSION, "kind": kind} in schema.get("x-kubernetes-group-version-kind", []):
            return dict(schema["properties"])
    return {}


def eventually(look: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """The first answer that holds, or the last one."""
    deadline = time.monotonic() + PUBLISHED_WITHIN_S
    while not holds(answer := look()) and time.monotonic() < deadline:
        continue
    return answer


ABSENT: Any = object()
ESTABLISHED = ("--for=jsonpath={.status.conditions}", "--for=condition=Established")
"""One after the other: kubectl fails where a CRD that was made a moment ago has no conditions at all yet."""


def a_task(name: str = "a-task", **spec: Any) -> dict[str, Any]:
    """The smallest good task, with these fields of its spec set, or left out by ABSENT."""
    whole = {"action": "Plan", "workspace": "network", "source": {"inline": {"main.tf": "# nothing"}}, **spec}
    return _an_object(TASK_KIND, name, whole)


def a_pool(name: str = "a-pool", **spec: Any) -> dict[str, Any]:
    return _an_object(POOL_KIND, name, spec)


def _an_object(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    present = {key: value for key, value in spec.items() if value is not ABSENT}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": present}
