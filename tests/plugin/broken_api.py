"""An API server whose connections break where a test says so: no real one does that on demand.

It knows one task, the pods of its agents, what those have logged, and what they have kept in Secrets; and the lock of
a state.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "team-a"
CREATED = "2026-01-02T03:00:00Z"


@dataclass
class Log:
    lines: list[tuple[str, str]]
    """Time and text."""
    breaks: list[int] = field(default_factory=list)
    """After so many lines each of the first streams breaks off; the ones after them are whole."""
    is_polite: bool = False
    """Whether they end as if that were all, and not in the middle of a line."""
    ends: str = ""
    """When the container is seen to have ended, once the last stream has broken off; empty: it still runs."""
    task: str = "network"


@dataclass
class BrokenApi:
    versions: list[dict[str, Any]]
    """Of the task: each request takes one, the last one stays. An empty one is the answer 503."""
    logs: dict[str, Log] = field(default_factory=dict)
    """By pod."""
    secrets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lock: dict[str, Any] | None = None
    """A Lease."""
    asked: list[str] = field(default_factory=list)

    def version(self) -> dict[str, Any]:
        return self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]

    def pod(self, name: str) -> dict[str, Any]:
        log = self.logs[name]
        end = {"terminated": {"finishedAt": log.ends}} if log.ends and not log.breaks else {"running": {}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"terrahalt.dev/last-task": log.task}},
            "status": {"containerStatuses": [{"name": "agent", "state": end}]},
        }


def a_version(phase: str, *, pod: str = "", **status: Any) -> dict[str, Any]:
    ended = phase in ("Succeeded", "Failed", "Cancelled")
    conditions = (
        [{"type": "Finished", "status": "True", "reason": phase, "lastTransitionTime": CREATED}] if ended else []
    )
    return {
        "apiVersion": "terrahalt.dev/v1alpha1",
        "kind": "TerraformTask",
        "metadata": {"name": "network", "namespace": NAMESPACE, "uid": "u", "creationTimestamp": CREATED},
        "spec": {"action": "Apply", "workspace": "network"},
        "status": {"phase": phase, "agent": {"podName": pod}, "conditions": conditions, **status},
    }


@contextmanager
def serving(api: BrokenApi, kubeconfig: Path) -> Iterator[None]:
    """The kubeconfig is written for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "/leases/" not in self.path:
                self._answer(api.version())
                return
            assert self.headers["Content-Type"] == "application/json-patch+json"
            assert api.lock is not None
            test, remove = patch
            if test != {"op": "test", "path": remove["path"], "value": api.lock["spec"]["holderIdentity"]}:
                self._answer(_failure(422, "Invalid"))
                return
            assert remove == {"op": "remove", "path": "/spec/holderIdentity"}
            del api.lock["spec"]["holderIdentity"]
            self._answer(api.lock)

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(address.query).items()}
            api.asked.append(self.path)
            match address.path.split("/")[1:]:
                case ["apis", _, _, _, _, "terraformtasks", "network"]:
                    self._answer(api.version() or _failure(503, "ServiceUnavailable"))
                case ["apis", _, _, _, _, "terraformtasks", name]:
                    self._answer(_failure(404, "NotFound", name=name))
                case ["apis", group, _, _, _, "terraformtasks"] if "watch" not in query:
                    kind = {"apiVersion": f"{group}/v1alpha1", "kind": "TerraformTaskList"}
                    self._answer({**kind, "metadata": {}, "items": [api.version()]})
                case ["apis", _, _, _, _, "terraformtasks"]:
                    self._answer(None)  # a watch that breaks off at once
                case ["apis", _, _, _, _, "leases", name]:
                    is_there = api.lock is not None and api.lock["metadata"]["name"] == name
                    self._answer(api.lock if is_there else _failure(404, "NotFound", name=name))
                case ["api", "v1", _, _, "secrets", name]:
                    self._answer(_secret(name, api.secrets.get(name)))
                case ["api", "v1", _, _, "pods"]:
                    self._answer({"kind": "PodList", "apiVersion": "v1", "items": [api.pod(name) for name in api.logs]})
                case ["api", "v1", _, _, "pods", name]:
                    self._answer(api.pod(name) if name in api.logs else _failure(404, "NotFound", name=name))
                case ["api", "v1", _, _, "pods", name, "log"]:
                    self._stream(api.logs[name], query)

        def _answer(self, body: dict[str, Any] | None) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(body["code"] if body and body["kind"] == "Status" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _stream(self, log: Log, query: dict[str, str]) -> None:
            since = query.get("sinceTime", "").removesuffix("Z")
            lines = [f"{time} {text}\n" for time, text in log.lines if time >= since]
            if "tailLines" in query:
                lines = lines[-int(query["tailLines"]) :]
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            count = log.breaks.pop(0) if log.breaks else None
            for line in lines[:count]:
                self._chunk(line)
            if count is None or log.is_polite:
                self._chunk("")
            elif count < len(lines):
                self._chunk(lines[count][: len(lines[count]) // 2])  # in the middle of a line
            self.close_connection = True

        def _chunk(self, text: str) -> None:
            self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())

        def log_message(self, *_: Any) -> None:
            pass

    Handler.protocol_version = "HTTP/1.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        kubeconfig.write_text(json.dumps(_configuration(server.server_port)))
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _secret(name: str, values: dict[str, bytes] | None) -> dict[str, Any]:
    if values is None:
        return _failure(404, "NotFound", name=name)
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def _failure(code: int, reason: str, **details: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "code": code,
        "message": reason,
        "details": details,
    }


def _configuration(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "broken",
        "clusters": [{"name": "broken", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "broken", "context": {"cluster": "broken", "user": "nobody", "namespace": NAMESPACE}}],
        "users": [{"name": "nobody", "user": {}}],
    }
