"""The Kubernetes API as the bench needs it: JSON in, JSON out, a stream of log lines, no kubectl in between.

A client of our own, because what is timed here must be one request and nothing else. It takes what
`kubectl config view` says of the cluster: a client certificate or a token. Errors are ApiError, with the
status. Called by all parts that use the cluster.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from yarl import URL

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
REQUEST_TIMEOUT_S = 15.0
POLL_S = 0.05
T = TypeVar("T")


class ApiError(Exception):
    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Api:
    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def get(self, path: str) -> Json:
        return await self._request("GET", path)

    async def find(self, path: str) -> Json | None:
        """None where there is no such object."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: Json) -> Json:
        return await self._request("POST", path, body)

    async def patch(self, path: str, body: Json) -> Json:
        return await self._request("PATCH", path, body, MERGE_PATCH)

    async def delete(self, path: str) -> None:
        """Nothing where it is gone already."""
        try:
            await self._request("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    async def until(
        self, path: str, condition: Callable[[Json], Any], within_s: float, what: str, poll_s: float = POLL_S
    ) -> Json:
        """The object once the condition holds. Raises TimeoutError, with the object's status in the text."""
        found: Json | None = None

        async def poll() -> Json:
            nonlocal found
            while True:
                found = await self.find(path)
                if found is not None and condition(found):
                    return found
                await asyncio.sleep(poll_s)

        return await within(within_s, poll(), lambda: f"{what}; its status: {json.dumps((found or {}).get('status'))}")

    async def lines(self, path: str) -> AsyncIterator[str]:
        """Lines of a followed log, as they come, until it ends."""
        forever = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S)
        async with self._http.get(path, timeout=forever) as response:
            if response.status >= 300:
                raise ApiError(response.status, f"GET {path}: {response.status} {await response.text()}")
            async for line in response.content:
                yield line.decode(errors="replace").rstrip("\n")

    def passed_on(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """What others ask for, as they ask for it; a watch may last."""
        forever = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S)
        return self._http.request(method, URL(path, encoded=True), data=body or None, headers=headers, timeout=forever)

    async def _request(
        self, method: str, path: str, body: Json | None = None, content_type: str = "application/json"
    ) -> Json:
        data = None if body is None else json.dumps(body)
        async with self._http.request(method, path, data=data, headers={"Content-Type": content_type}) as response:
            text = await response.text()
        if response.status >= 300:
            raise ApiError(response.status, f"{method} {path}: {response.status} {text[:500]}")
        answer: Json = json.loads(text)
        return answer


@asynccontextmanager
async def connected(kubectl: str, environment: Mapping[str, str]) -> AsyncIterator[Api]:
    """Raises ApiError where the kubeconfig has neither certificate nor token."""
    process = await asyncio.create_subprocess_exec(
        *(kubectl, "config", "view", "--raw", "--minify", "--flatten", "-o", "json"),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    config: Json = json.loads(out)
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    connector = aiohttp.TCPConnector(ssl=_context(cluster, user))
    async with aiohttp.ClientSession(cluster["server"], connector=connector, timeout=timeout, headers=headers) as http:
        yield Api(http)


def _context(cluster: Json, user: Json) -> ssl.SSLContext:
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    if "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as file:  # ssl reads keys from files only
            file.write(base64.b64decode(user["client-certificate-data"]))
            file.write(b"\n" + base64.b64decode(user["client-key-data"]))
            file.flush()
            context.load_cert_chain(file.name)
    elif "token" not in user:
        raise ApiError(0, "the bench needs a kubeconfig with a client certificate or a token")
    return context


async def within(seconds: float, work: Awaitable[T], what: Callable[[], str]) -> T:
    """Raises TimeoutError that says what did not happen."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise TimeoutError(f"not within {seconds:.0f} s: {what()}") from None
