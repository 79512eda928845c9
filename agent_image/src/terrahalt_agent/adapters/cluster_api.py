"""The few things that the agent reads from the Kubernetes API, with the pod's own ServiceAccount.

Plain GETs of named objects; never a list, a watch or a write. A session exists only while something is
asked, so an idle agent keeps nothing open. Called by `workdir` and `backend`.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from terrahalt_protocol.messages import ConfigFrom, EnvFrom

_REQUEST_S = 5.0
_TRIES = 3
_PAUSE_S = 0.3


class ApiError(Exception):
    """The API server did not give what was asked; the text says what and why."""


class NotFoundError(ApiError):
    pass


@dataclass(frozen=True, slots=True)
class ApiServer:
    url: str
    token_file: Path
    ca_file: Path


class ClusterApi:
    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self._namespace = namespace

    async def config_map(self, name: str) -> dict[str, bytes]:
        content = await self._get(f"api/v1/namespaces/{self._namespace}/configmaps/{name}", f"ConfigMap {name}")
        texts = {key: value.encode() for key, value in (content.get("data") or {}).items()}
        return texts | _decoded(content.get("binaryData"))

    async def secret(self, name: str) -> dict[str, bytes]:
        content = await self._get(f"api/v1/namespaces/{self._namespace}/secrets/{name}", f"Secret {name}")
        return _decoded(content.get("data"))

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
        return await self._get(path, f"Lease {name}")

    async def _get(self, path: str, what: str) -> dict[str, Any]:
        """Raises NotFoundError, or ApiError after a bounded number of tries."""
        failure = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            try:
                status, body = await self._request(path)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = str(error) or type(error).__name__
                continue
            if status == 200:
                return _object(body, what)
            if status == 404:
                raise NotFoundError(f"{what} was not found in namespace {self._namespace}")
            if status in (401, 403):
                raise ApiError(
                    f"the agent's ServiceAccount may not read {what} in namespace {self._namespace} "
                    f"(HTTP {status}): give its Role the verb get"
                )
            failure = f"HTTP {status}"
        raise ApiError(f"{what} in namespace {self._namespace} could not be read: {failure}")

    async def _request(self, path: str) -> tuple[int, bytes]:
        context = ssl.create_default_context(cafile=str(self._server.ca_file))
        # Read each time: the kubelet renews it.
        headers = {"Authorization": f"Bearer {self._server.token_file.read_text().strip()}"}
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
            session.get(f"{self._server.url}/{path}") as response,
        ):
            return response.status, await response.read()


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
