"""Where the agents of a pool get providers from, as the operator tells them: JSON in their environment.

It travels with the pod, not with a run: what it names are the pod's volumes. Both sides read it; no I/O here.
"""

from __future__ import annotations

import msgspec

VARIABLE = "TERRAHALT_PROVIDERS"
MIRROR_PATH = "/var/lib/terrahalt/providers"
"""Where the volume of the filesystem mirror is mounted, read-only."""
CACHE_PATH = "/var/cache/terrahalt/providers"


class FilesystemMirror(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    path: str
    include: tuple[str, ...] = ()
    """Patterns of providers; empty: every one."""


class NetworkMirror(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    url: str
    include: tuple[str, ...] = ()


class Providers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All absent: from the registries that the sources name."""

    filesystem_mirror: FilesystemMirror | None = None
    network_mirror: NetworkMirror | None = None
    cache: str = ""
    """A directory that agents share; empty: none."""


def encode(providers: Providers) -> str:
    return msgspec.json.encode(providers).decode()


def decode(text: str) -> Providers:
    """Raises ValueError."""
    try:
        return msgspec.json.decode(text, type=Providers)
    except msgspec.DecodeError as error:
        raise ValueError(f"{VARIABLE} can't be read: {error}") from error
