"""All objects of a kind, and then each change, as long as somebody listens.

Goes on from the last version where a watch ends, and lists anew where the API server has forgotten that one; what was
deleted in between is not told then. Called by both processes of `make bench-scale`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from tests.bench.kubernetes_api import Api, ApiError, Json

_PAGE = 500
_AGAIN_AFTER_S = 0.2
_decode = msgspec.json.Decoder().decode


async def listed(api: Api, path: str, query: str = "") -> tuple[list[Json], str]:
    """All objects, in pages, and the version at which the list began."""
    items: list[Json] = []
    version = following = ""
    while True:
        page = await api.get(f"{path}?limit={_PAGE}{query}{f'&continue={following}' if following else ''}")
        items += page["items"]
        version = version or page["metadata"]["resourceVersion"]
        if not (following := page["metadata"].get("continue", "")):
            return items, version


async def follow(api: Api, path: str, query: str = "") -> AsyncIterator[tuple[bool, Json]]:
    """(whether it is gone, the object); what is there already first."""
    version = ""
    while True:
        try:
            if not version:
                items, version = await listed(api, path, query)
                for item in items:
                    yield False, item
            async for line in api.lines(f"{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}{query}"):
                event: dict[str, Any] = _decode(line)
                if event["type"] == "ERROR":
                    version = ""
                    break
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield event["type"] == "DELETED", event["object"]
        except ApiError as error:
            if error.status not in (410, 429) and error.status < 500:
                raise
            version = "" if error.status == 410 else version
            await asyncio.sleep(_AGAIN_AFTER_S)
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(_AGAIN_AFTER_S)  # the API server is busy, or has cut the watch: it goes on where it was
