"""Where an engine looks for providers, and which packages of the shared cache a run may use.

A cache must not change what a run gets: versions are chosen without it, and a provider that the source's lock file
names comes from it only with a checksum that stands there. Called by `workdir` (settings of a run) and
`provider_cache` (packages); pure.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from terrahalt_protocol.providers import Providers

_LOCKED = re.compile(r'^\s*provider\s+"([^"]+)"', re.MULTILINE)
_H1 = re.compile(r'"(h1:[^"]+)"')


def cli_config(providers: Providers) -> str:
    """The engine's CLI configuration; empty: it needs none. A mirror for every provider leaves the registries out; what
    one with patterns is for comes from no registry."""
    filesystem, network = providers.filesystem_mirror, providers.network_mirror
    blocks: list[str] = []
    if filesystem is not None:
        blocks.append(_block("filesystem_mirror", {"path": filesystem.path}, include=filesystem.include))
    if network is not None:
        blocks.append(_block("network_mirror", {"url": network.url}, include=network.include))
    if not blocks:
        return ""
    patterns = [mirror.include for mirror in (filesystem, network) if mirror is not None]
    if all(patterns):
        blocks.append(_block("direct", {}, exclude=[pattern for some in patterns for pattern in some]))
    return "provider_installation {\n" + "".join(blocks) + "}\n"


def environment(*, config: str, cache: str) -> dict[str, str]:
    """For the files of a run; empty where there is none."""
    found = {"TF_CLI_CONFIG_FILE": config} if config else {}
    # Else terraform uses of a cache only what a lock file names; the run's own lock file needs no other platform.
    may_break = {"TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE": "1"}
    return found | ({"TF_PLUGIN_CACHE_DIR": cache} | may_break if cache else {})


def locked(lock_file: str) -> dict[str, frozenset[str]]:
    """Each provider that a lock file names, and the checksums of unpacked packages that it has for it."""
    found: dict[str, frozenset[str]] = {}
    _, *parts = _LOCKED.split(lock_file)
    for name, block in zip(parts[::2], parts[1::2], strict=True):
        found[name] = frozenset(_H1.findall(block))
    return found


def may_use(provider: str, checksum: str, locks: Mapping[str, frozenset[str]]) -> bool:
    return bool(checksum) and (provider not in locks or checksum in locks[provider])


def checksum(files: Mapping[str, str]) -> str:
    """Of a package, as lock files have it: `files` are its paths and, in hex, their SHA-256."""
    lines = "".join(f"{files[path]}  {path}\n" for path in sorted(files))
    return "h1:" + base64.b64encode(hashlib.sha256(lines.encode(errors="surrogateescape")).digest()).decode()


def _block(kind: str, settings: Mapping[str, str], **patterns: Sequence[str]) -> str:
    lines = [f"    {name} = {json.dumps(value)}\n" for name, value in settings.items()]
    lines += [f"    {name} = {json.dumps(list(values))}\n" for name, values in patterns.items() if values]
    return f"  {kind} {{\n{''.join(lines)}  }}\n"
