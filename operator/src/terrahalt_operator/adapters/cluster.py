"""The Kubernetes API, as JSON objects: the only door to the `kubernetes` library.

Every request has a deadline and no silent retry: who asks decides again, from what is true then. Errors
come as `errors.ClusterError`, by what the caller has to do. Whoever writes as the leader gets a `guarded` one.
Called by `world` (lists), `effects` (writes), `app`, `uninstall`, `installed`, and the adapters `events`, `leadership`
and `trust`; must never be called from kopf's thread.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from terrahalt_operator.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused, Unreachable

REQUEST_TIMEOUT_S = 15.0
LIST_CHUNK = 100
"""The most that was decoded at once is what the process keeps of memory, however little of it is still in use."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
FIELD_MANAGER = "terrahalt-operator"

Json = dict[str, Any]

_TASKS = "/apis/terrahalt.dev/v1alpha1", "terraformtasks"
_POOLS = "/apis/terrahalt.dev/v1alpha1", "agentpools"
_PODS = "/api/v1", "pods"
_CONFIG_MAPS = "/api/v1", "configmaps"
_SECRETS = "/api/v1", "secrets"
_EVENTS = "/apis/events.k8s.io/v1", "events"
_LEASES = "/apis/coordination.k8s.io/v1", "leases"
_NETWORK_POLICIES = "/apis/networking.k8s.io/v1", "networkpolicies"
_BUDGETS = "/apis/policy/v1", "poddisruptionbudgets"
_DEPLOYMENTS = "/apis/apps/v1", "deployments"

TASKS, POOLS, PODS, CONFIG_MAPS, SECRETS, EVENTS, LEASES, NETWORK_POLICIES, BUDGETS, DEPLOYMENTS = (
    _TASKS,
    _POOLS,
    _PODS,
    _CONFIG_MAPS,
    _SECRETS,
    _EVENTS,
    _LEASES,
    _NETWORK_POLICIES,
    _BUDGETS,
    _DEPLOYMENTS,
)
Resource = tuple[str, str]


class _Known(msgspec.Struct):
    uid: str = ""
    resource_version: str = msgspec.field(name="resourceVersion", default="")


class _Listed(msgspec.Struct):
    metadata: _Known


class _Listing(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion")
    following: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _Listing
    items: list[msgspec.Raw]


_PAGE, _LISTED = msgspec.json.Decoder(_Page), msgspec.json.Decoder(_Listed)


class Cluster:
    """One connection pool to the API server; in a pod by its ServiceAccount, else by the kubeconfig."""

    def __init__(
        self,
        api: client.ApiClient,
        deadline_s: float = REQUEST_TIMEOUT_S,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._api, self._deadline_s, self._guard = api, deadline_s, guard

    @classmethod
    async def connect(cls) -> Cluster:
        configuration = client.Configuration()
        configuration.connection_pool_maxsize = 64
        # A proxy of the environment, which kopf does not ask either, and ~/.netrc would each be looked up in a thread,
        # for each request.
        configuration.client_session_kwargs = {"trust_env": False}
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    async def close(self) -> None:
        await self._api.close()

    def within(self, deadline_s: float) -> Cluster:
        """The same, for requests that have to be answered sooner."""
        return Cluster(self._api, deadline_s, self._guard)

    def guarded(self, guard: Callable[[], None]) -> Cluster:
        """The same, where `guard` is asked right before each write, and raises where there may be none."""
        return Cluster(self._api, self._deadline_s, guard)

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        return await self._request("GET", _path(resource, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", *, name: str = ""
    ) -> tuple[list[Json], str]:
        """All objects, and the resourceVersion at which the list began; or the one of this name."""
        items: list[Json] = []
        version = await self.each(resource, namespace, items.append, labels, name=name)
        return items, version

    async def each(
        self,
        resource: Resource,
        namespace: str | None,
        take: Callable[[Json], None],
        labels: str = "",
        *,
        name: str = "",
        is_known: Callable[[str, str], bool] = lambda _uid, _version: False,
    ) -> str:
        """The same, one by one: of thousands only a chunk is in memory. Where it fails, some were taken. Those that are
        known by UID and resourceVersion are not decoded, which is most of what a list costs here."""
        query = {"limit": str(LIST_CHUNK)} | ({"labelSelector": labels} if labels else {}) | _only(name)
        version = ""
        while True:
            page = _PAGE.decode(await self._ask("GET", _path(resource, namespace), query=query))
            for item in page.items:
                known = _LISTED.decode(item).metadata
                if not is_known(known.uid, known.resource_version):
                    take(msgspec.json.decode(item))
            version = version or page.metadata.resource_version
            if not page.metadata.following:
                return version
            query["continue"] = page.metadata.following

    async def version(self, resource: Resource, namespace: str | None) -> str:
        """The resourceVersion of a list of them now. Raises ClusterError where they can't be listed."""
        answer = await self._request("GET", _path(resource, namespace), query={"limit": "1"})
        return str(answer["metadata"]["resourceVersion"])

    async def served(self, group: str) -> frozenset[str]:
        """The plurals of this group and version, of subresources as `PLURAL/NAME`; NotFound where it is not served."""
        return frozenset(resource["name"] for resource in (await self._request("GET", group))["resources"])

    async def watch(
        self, resource: Resource, namespace: str | None, name: str, version: str, *, silence_s: float
    ) -> AsyncGenerator[tuple[bool, Json], None]:
        """(whether it is gone, the object), for all that happens to this one, or to all if `name` is empty, after that
        version.

        Ends, or raises Unreachable, where the server ends it, says an error, or is silent for so long.
        """
        what = f"WATCH {_path(resource, namespace, name)}"
        query = {"watch": "true", "resourceVersion": version} | _only(name)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._deadline_s, sock_read=silence_s)
        try:
            response = await self._call("GET", _path(resource, namespace), query=query, timeout=timeout)
            async with response.response as stream:
                if stream.status >= 300:
                    raise _error(stream.status, what, await stream.read())
                async for line in stream.content:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        raise _error(int(event["object"].get("code", 500)), what, json.dumps(event["object"]).encode())
                    yield event["type"] == "DELETED", event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException, ValueError) as error:
            raise Unreachable(f"{what}: {error or type(error).__name__}") from error

    async def log_tail(self, namespace: str, pod: str, container: str, max_bytes: int) -> tuple[bytes, int]:
        """The end of a container's log, in whole lines, and how many bytes came before that."""
        path = f"{_path(PODS, namespace, pod)}/log"
        timeout = aiohttp.ClientTimeout(total=self._deadline_s)
        chunks, size, read = deque[bytes](), 0, 0
        try:
            response = await self._call("GET", path, query={"container": container}, accept="*/*", timeout=timeout)
            async with response.response as stream:
                if stream.status >= 300:
                    raise _error(stream.status, f"GET {path}", await stream.read())
                async for chunk in stream.content.iter_any():
                    chunks.append(chunk)
                    size, read = size + len(chunk), read + len(chunk)
                    while size - len(chunks[0]) > max_bytes:
                        size -= len(chunks.popleft())
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
            raise Unreachable(f"GET {path}: {error or type(error).__name__}") from error
        text = b"".join(chunks)
        if read > max_bytes:
            text = text[-max_bytes:].partition(b"\n")[2]
        return text, read - len(text)

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        return await self._request("POST", _path(resource, namespace), body=body)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Json, *, subresource: str = "") -> Json:
        """A JSON merge patch; with `metadata.resourceVersion` in it, refused if the object changed."""
        path = _path(resource, namespace, name) + (f"/{subresource}" if subresource else "")
        return await self._request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def apply(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Made, or made again as it says here, whoever has changed that."""
        path = _path(resource, namespace, body["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str = "", version: str = "") -> Json:
        """Only the object of this UID and version, where they are given.

        The object as it is now, where a finalizer or a grace keeps it; else a Status.
        """
        preconditions = {k: v for k, v in (("uid", uid), ("resourceVersion", version)) if v}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
        return await self._request("DELETE", _path(resource, namespace, name), body=body)

    async def review_token(self, token: str, audience: str) -> Json:
        """The status of a TokenReview."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self._request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
        status: Json = review.get("status", {})
        return status

    async def _request(self, method: str, path: str, **asked: Any) -> Json:
        answer: Json = msgspec.json.decode(await self._ask(method, path, **asked))
        return answer

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        what = f"{method} {path}"
        timeout = aiohttp.ClientTimeout(total=self._deadline_s)
        try:
            response = await self._call(
                method, path, query=query, body=body, content_type=content_type, timeout=timeout
            )
            payload: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
            raise Unreachable(f"{what}: the API server did not answer: {error or type(error).__name__}") from error
        if response.status < 300:
            return payload
        raise _error(response.status, what, payload)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> client.rest.RESTResponse:
        verb, url, headers, data, _ = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": accept},
            body=body,
            auth_settings=["BearerToken"],
        )
        if method != "GET":
            self._guard()
        return await self._api.call_api(verb, url, headers, data, _request_timeout=timeout)


def _only(name: str) -> dict[str, str]:
    return {"fieldSelector": f"metadata.name={name}"} if name else {}


def _path(resource: Resource, namespace: str | None, name: str = "") -> str:
    group, plural = resource
    parts = [group, *([f"namespaces/{namespace}"] if namespace else []), plural, *([name] if name else [])]
    return "/".join(parts)


def _error(status: int, what: str, payload: bytes) -> ClusterError:
    try:
        answer = json.loads(payload)
        text, reason = str(answer.get("message", "")), answer.get("reason")
    except (ValueError, AttributeError):
        text, reason = payload[:300].decode(errors="replace"), None
    message = f"{what}: {status} {text}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if status == 429 or status >= 500:
        return Unreachable(message)
    return Refused(message)
