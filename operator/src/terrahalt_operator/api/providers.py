"""Where a pool's agents get providers from; used by `pool`."""

from __future__ import annotations

from typing import Annotated

from .schema import ApiModel, DnsName, Keywords, Rule

_URL = r"^https://[^\s\\?#\"]+/$"
_PATTERN = r"^([a-z0-9.-]+(:[0-9]+)?/)?[A-Za-z0-9_*-]+/[A-Za-z0-9_*-]+$"

_Patterns = Annotated[
    list[Annotated[str, Keywords(minLength=3, maxLength=256, pattern=_PATTERN)]],
    Keywords(**{"minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "set"}),
]


class FilesystemMirror(ApiModel):
    """Providers on a volume, as `terraform providers mirror` lays them out."""

    claim_name: DnsName
    """A PersistentVolumeClaim of the pool's namespace. Agents mount it read-only; with agents on several nodes it must
    be ReadOnlyMany or ReadWriteMany. An agent that finds nothing there does not become ready."""
    include: _Patterns | None = None
    """Which providers come from here and from no registry, for example `example.com/*/*` or `hashicorp/aws`. Absent:
    all of them, and no registry is asked at all. At most 64 patterns."""


class NetworkMirror(ApiModel):
    """A server with the provider network mirror protocol."""

    url: Annotated[str, Keywords(maxLength=1024, pattern=_URL)]
    """Its address, which begins with https:// and ends with a slash."""
    include: _Patterns | None = None
    """Which providers come from here and from no registry, for example `example.com/*/*` or `hashicorp/aws`. Absent:
    all of them, and no registry is asked at all. At most 64 patterns."""


class ProviderCache(ApiModel):
    """Providers that the agents of a pool keep for each other."""

    claim_name: DnsName
    """A PersistentVolumeClaim of the pool's namespace, which agents fill and read; with agents on several nodes it must
    be ReadWriteMany. Nothing is ever removed from it (docs/providers.md)."""


class Providers(ApiModel):
    """Where agents get providers from. Versions are chosen from mirrors and registries, never from the cache."""

    filesystem_mirror: FilesystemMirror | None = None
    """Providers on a volume. Absent: none."""
    network_mirror: NetworkMirror | None = None
    """Providers from a server of your own. Absent: none."""
    cache: ProviderCache | None = None
    """A volume for what agents have fetched, so that each version is fetched once. Absent: each run fetches its
    providers."""

    RULES = (
        Rule(
            "has(self.filesystemMirror) || has(self.networkMirror) || has(self.cache)",
            "providers says nothing: add filesystemMirror, networkMirror or cache, or remove it",
        ),
        Rule(
            "!has(self.filesystemMirror) || !has(self.cache) || "
            "self.filesystemMirror.claimName != self.cache.claimName",
            "filesystemMirror and cache are laid out differently: use a claim of its own for each",
            ".cache.claimName",
        ),
    )
