"""Bytes that are too large for one Secret, in as many as they need; the first has the name, the others its parts.

Knows nothing of what it keeps. Called by `state_copies` and `kept_plans`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terrahalt_agent.adapters.cluster_api import ClusterApi, NotFoundError
from terrahalt_protocol.kept_secret import MAX_BYTES, secret

PART_BYTES = MAX_BYTES
MAX_PARTS = 32


class TooLargeError(Exception):
    """More than all parts together hold, or than what is kept may have."""


class SecretParts:
    def __init__(self, api: ClusterApi, key: str, max_bytes: int = MAX_PARTS * PART_BYTES) -> None:
        """`key`: under which each Secret has its part."""
        self._api = api
        self._key = key
        self._max_bytes = max_bytes

    async def keep(self, name: str, content: bytes, metadata: Mapping[str, Any]) -> None:
        """In the place of what had the name before. Raises ApiError and TooLargeError."""
        if len(content) > self._max_bytes:
            raise TooLargeError(f"compressed, it has {len(content)} bytes; {self._max_bytes} can be kept")
        parts = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
        for number, part in enumerate(parts):
            await self._api.put_secret(secret(part_name(name, number), metadata, {self._key: part}))
        await self._drop(name, len(parts))

    async def read(self, name: str) -> bytes:
        """Raises NotFoundError where there is nothing of it, and ApiError."""
        return b"".join([part for _, part in await self._parts(name)])

    async def names(self, name: str) -> list[str]:
        """Of its Secrets, in their order. Raises as `read` does."""
        return [part for part, _ in await self._parts(name)]

    async def _parts(self, name: str) -> list[tuple[str, bytes]]:
        found = list[tuple[str, bytes]]()
        try:
            while len(found) < MAX_PARTS:
                part = part_name(name, len(found))
                found.append((part, (await self._api.secret(part)).get(self._key, b"")))
        except NotFoundError:
            if not found:
                raise
        return found

    async def _drop(self, name: str, number: int) -> None:
        """Of something larger that was here before: they would be taken for the end of this."""
        try:
            while number < MAX_PARTS:
                await self._api.delete_secret(part_name(name, number))
                number += 1
        except NotFoundError:
            pass


def part_name(name: str, number: int) -> str:
    """As terraform names the Secrets of a state that needs more than one."""
    return f"{name}-part-{number}" if number else name
