"""The few things that the agent asks of the Kubernetes API, with the pod's own ServiceAccount.

Named objects only, never a list or a watch. A connection is kept for a while, as a handshake costs more than most
answers; an idle agent has none. Called by whatever reads or keeps something there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from terrahalt_protocol.messages import ConfigFrom, EnvFrom

_REQUEST_S = 5.0
_KEPT_S = 15.0
"""Of a connection that nobody uses. Longer, it could be one to a server that is gone, and nobody told."""
_TRIES = 3
_PAUSE_S = 0.3
_VERBS = {
    "GET": ("get", "read", "read"),
    "POST": ("create", "make", "made"),
    "PUT": ("update", "replace", "replaced"),
    "PATCH": ("patch", "change", "changed"),
    "DELETE": ("delete", "delete", "deleted"),
}
_JSON = "application/json"
_JSON_PATCH = "application/json-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server did not give what was asked; the text says what and why."""


class NotFoundError(ApiError):
    pass


class ConflictError(ApiError):
    """It is there already, or has changed since it was looked at."""


class UnreachableError(ApiError):
    """It may be different soon."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    url: str
    token_file: Path
    ca_file: Path


class ClusterApi:
    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self._namespace = namespace
        self._connector: aiohttp.TCPConnector | None = None
        self._ca = b""

    async def close(self) -> None:
        if self._connector is not None:
            await self._connector.close()

    async def connect(self) -> None:
        """Before something is asked that must not wait for a handshake; never raises."""
        with contextlib.suppress(Exception):  # whoever asks is told what is wrong
            await self._request("GET", "version", None, "")

    async def config_map(self, name: str) -> dict[str, bytes]:
        content = await self._ask("GET", f"api/v1/namespaces/{self._namespace}/configmaps/{name}", f"ConfigMap {name}")
        texts = {key: value.encode() for key, value in (content.get("data") or {}).items()}
        return texts | _decoded(content.get("binaryData"))

    async def secret(self, name: str) -> dict[str, bytes]:
        return _decoded((await self.secret_object(name)).get("data"))

    async def secret_object(self, name: str) -> dict[str, Any]:
        return await self._ask("GET", self._secrets(name), f"Secret {name}")

    async def values(self, source: EnvFrom | ConfigFrom) -> dict[str, bytes]:
        """The keys of what it names; none where that may be missing, and is."""
        try:
            if source.secret is not None:
                return await self.secret(source.secret)
            return await self.config_map(source.config_map or "")
        except NotFoundError:
            if source.optional:
                return {}
            raise

    async def lease(self, name: str) -> dict[str, Any]:
        path = f"apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases/{name}"
        return await self._ask("GET", path, f"Lease {name}")

    async def patch_lease(self, name: str, patch: list[dict[str, str]]) -> None:
        """A JSON patch (RFC 6902): all of it, or nothing where one of its tests fails."""
        path = f"apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases/{name}"
        await self._ask("PATCH", path, f"Lease {name}", patch, _JSON_PATCH)

    async def put_secret(self, secret: dict[str, Any]) -> None:
        """Made, or replaced where there is one."""
        name = secret["metadata"]["name"]
        path = f"{self._secrets(name)}?fieldManager=terrahalt-agent&force=true"
        await self._ask("PATCH", path, f"Secret {name}", secret, _APPLY_PATCH)

    async def create_secret(self, secret: dict[str, Any]) -> None:
        """Raises ConflictError where there is one."""
        await self._ask("POST", self._secrets(), f"Secret {secret['metadata']['name']}", secret, _JSON)

    async def replace_secret(self, secret: dict[str, Any]) -> None:
        """The one of its `resourceVersion`. Raises ConflictError where that has changed."""
        name = secret["metadata"]["name"]
        await self._ask("PUT", self._secrets(name), f"Secret {name}", secret, _JSON)

    async def delete_secret(self, name: str) -> None:
        await self._ask("DELETE", self._secrets(name), f"Secret {name}")

    def _secrets(self, name: str = "") -> str:
        return f"api/v1/namespaces/{self._namespace}/secrets{'/' if name else ''}{name}"

    async def _ask(
        self, method: str, path: str, what: str, body: object = None, content_type: str = ""
    ) -> dict[str, Any]:
        """Raises NotFoundError, or ApiError after a bounded number of tries."""
        failure, (verb, do, done) = "", _VERBS[method]
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            try:
                status, answer = await self._request(method, path, body, content_type)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = str(error) or type(error).__name__
                continue
            if status in (200, 201):
                return _object(answer, what)
            if status == 404:
                raise NotFoundError(f"{what} was not found in namespace {self._namespace}")
            if status in (401, 403):
                raise ApiError(
                    f"the agent's ServiceAccount may not {do} {what} in namespace {self._namespace} "
                    f"(HTTP {status}): give its Role the verb {verb}"
                )
            failure = f"HTTP {status}"
            if status == 409:
                raise ConflictError(f"{what} in namespace {self._namespace} could not be {done}: {failure}")
            if status < 500 and status != 429:
                raise ApiError(f"{what} in namespace {self._namespace} could not be {done}: {failure}")
        raise UnreachableError(f"{what} in namespace {self._namespace} could not be {done}: {failure}")

    async def _request(self, method: str, path: str, body: object, content_type: str) -> tuple[int, bytes]:
        # Read each time: the kubelet renews it.
        headers = {"Authorization": f"Bearer {self._server.token_file.read_text().strip()}"}
        data = None if body is None else io.BytesIO(msgspec.json.encode(body))
        if data is not None:
            headers["Content-Type"] = content_type
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        async with (
            aiohttp.ClientSession(
                connector=await self._connections(), connector_owner=False, timeout=timeout, headers=headers
            ) as session,
            session.request(method, f"{self._server.url}/{path}", data=data) as response,
        ):
            return response.status, await response.read()

    async def _connections(self) -> aiohttp.TCPConnector:
        """To whoever the authority of now vouches for: it may be replaced, too."""
        ca = self._server.ca_file.read_bytes()
        if self._connector is None or ca != self._ca:
            context = ssl.create_default_context(cafile=str(self._server.ca_file))
            before, self._ca = self._connector, ca
            self._connector = aiohttp.TCPConnector(ssl=context, keepalive_timeout=_KEPT_S)
            if before is not None:
                await before.close()
        return self._connector


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(f"{what}: the API server's answer is no JSON") from error
    if not isinstance(content, dict):
        raise ApiError(f"{what}: the API server's answer is no object")
    return content


def _decoded(encoded: dict[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (encoded or {}).items()}
