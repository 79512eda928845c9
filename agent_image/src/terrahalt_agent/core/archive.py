"""What an archive may be: whom it is asked of, and by whom credentials are seen, how large it is, what it may hold.

Nothing of an archive is opened before its digest is the one that the task names; all the same it may not leave its
directory, take a node's disk, or bring anything but files, directories and links. Called by `adapters.archive`; pure.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from enum import Enum
from urllib.parse import urljoin, urlsplit

from terrahalt_agent.core.access import Access
from terrahalt_agent.core.source import (
    ACCESS_DENIED,
    INVALID,
    SERVER_NOT_TRUSTED,
    SourceError,
    check_path,
    without_query,
)
from terrahalt_protocol.messages import ArchiveSource

MAX_PACKED_BYTES = 128 * 1024 * 1024
MAX_BYTES = 512 * 1024 * 1024
"""Unpacked; the packed file and, of a tar.gz, the tar lie beside it until it is there."""
MAX_FILES = 20_000
"""And directories and links."""
WITHIN_S = 300.0
"""From the first request to the last file; `timeoutSeconds` may end it sooner."""
SILENT_S = 60.0
MAX_REDIRECTS = 5

_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[^#\\\s\x00-\x1f\x7f]*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PORTS = {"http": 80, "https": 443}
_MAX_PATH_CHARS = 1024
_MAX_NAME_BYTES = 255
_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f\\]")
_REACH = "check source.archive.url, and that the agent's pod can reach it (DNS, HTTPS_PROXY, network policies)"


class Entry(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "symbolic link"


class Contents:
    """Takes entry after entry, and refuses the first that is too much."""

    def __init__(self, *, max_bytes: int, max_files: int) -> None:
        self._max_bytes, self._max_files = max_bytes, max_files
        self._entries: dict[str, Entry] = {}
        self._written = set[str]()
        self._bytes = 0

    def add(self, name: str, entry: Entry) -> str:
        """Its path in the tree; empty for the tree itself. Raises SourceError."""
        path = name.removeprefix("./")
        if entry is Entry.DIRECTORY:
            path = path.removesuffix("/")
        if entry is Entry.DIRECTORY and path in ("", "."):
            return ""
        check_path(path, "the archive's entry")
        if _NOT_IN_A_NAME.search(path) or len(path) > _MAX_PATH_CHARS:
            raise refused(name, "its name is too long, or has a backslash or a control character")
        parts = path.split("/")
        if any(len(part.encode(errors="surrogateescape")) > _MAX_NAME_BYTES for part in parts):
            raise refused(name, f"a part of its name has more than {_MAX_NAME_BYTES} bytes")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if self._entries.setdefault(above, Entry.DIRECTORY) is not Entry.DIRECTORY:
                raise refused(name, f"{above!r} is no directory of the archive")
        before = self._entries.setdefault(path, entry)
        if before is not entry or (path in self._written and entry is not Entry.DIRECTORY):
            raise refused(name, "another entry has the same name")
        self._written.add(path)
        if len(self._entries) > self._max_files:
            raise SourceError(f"the archive has more than {self._max_files} files and directories: make it smaller")
        return path

    def grow(self, size: int) -> None:
        """Raises SourceError."""
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise SourceError(f"the archive has more than {self._max_bytes} bytes once it is unpacked: make it smaller")


def check(source: ArchiveSource) -> None:
    """Raises SourceError: the API server has refused the same, but an agent has to rely on it."""
    if not _URL.fullmatch(source.url):
        raise SourceError("source.archive.url must be an http:// or https:// address without a user name: correct it")
    if not _SHA256.fullmatch(source.sha256):
        raise SourceError("source.archive.sha256 must be 64 hexadecimal digits in lower case: correct it")
    if source.secret and source.url.startswith("http:"):
        raise SourceError("source.archive.secretRef would be readable on the way: use an https:// address")
    if source.path:
        check_path(source.path, "source.archive.path")


def headers(url: str, source: ArchiveSource, access: Access) -> dict[str, str]:
    """Of a request to `url`, which may be where another server has sent us on to."""
    # Else a server that packs once more on the way would change the digest.
    found = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "terrahalt"}
    if _origin(url) != _origin(source.url):
        return found
    if access.token:
        found["Authorization"] = f"Bearer {access.token}"
    elif access.password:
        pair = f"{access.username}:{access.password}"
        found["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return found


def sent_on(url: str, location: str) -> str:
    """The address to ask next. Raises SourceError."""
    target = urljoin(url, location).partition("#")[0]
    if not _URL.fullmatch(target) or (url.startswith("https:") and not target.startswith("https:")):
        raise SourceError(
            f"{without_query(url)} sends on to what is not asked, {without_query(target)[:200]!r}: "
            "give source.archive.url the address of the archive itself"
        )
    return target


def proxy(url: str, env: Mapping[str, str]) -> str | None:
    """As terraform and git find theirs in the environment."""
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"
    found = env.get(name) or env.get(name.upper()) or ""
    if not found or _is_exempt(parts.hostname or "", parts.port or _PORTS[parts.scheme], _no_proxy(env)):
        return None
    return found if "://" in found else f"http://{found}"


def answered(source: ArchiveSource, status: int) -> SourceError | None:
    """None: with what was asked for."""
    if status == 200:
        return None
    if status in (401, 403, 407):
        may = f"what is in Secret {source.secret} may read it" if source.secret else "it needs source.archive.secretRef"
        return failed(source, f"HTTP {status}: check whether {may}", ACCESS_DENIED)
    return failed(source, f"HTTP {status}: check source.archive.url")


def unreachable(source: ArchiveSource, said: str) -> SourceError:
    return failed(source, f"{_readable(said)}: {_REACH}")


def not_trusted(source: ArchiveSource, said: str) -> SourceError:
    advice = "give the agents the server's CA: in what source.archive.caRef names, or the file SSL_CERT_FILE"
    return failed(source, f"{_readable(said)}: {advice}", SERVER_NOT_TRUSTED)


def too_late(source: ArchiveSource, within_s: float) -> SourceError:
    return failed(source, f"it took more than {within_s:.0f} s: check that the server answers, or make it smaller")


def too_large(source: ArchiveSource, max_bytes: int) -> SourceError:
    return failed(source, f"it has more than {max_bytes} bytes: make it smaller")


def another(source: ArchiveSource, sha256: str) -> SourceError:
    """It is opened by nobody."""
    return failed(
        source,
        f"it has the sha256 {sha256}, and source.archive.sha256 is {source.sha256}: it was changed, or the task means "
        "another one: correct sha256 only if you know which",
    )


def unreadable(source: ArchiveSource, said: str) -> SourceError:
    return failed(source, f"it can't be unpacked, {_readable(said)}: make it anew, as tar.gz or zip")


def failed(source: ArchiveSource, why: str, reason: str = INVALID) -> SourceError:
    return SourceError(f"the archive {without_query(source.url)} could not be used: {why}", reason)


def _readable(said: str) -> str:
    return re.sub(r"[^ -~]+", " ", said).strip()[:300] or "without a word"


def refused(name: str, why: str) -> SourceError:
    return SourceError(f"the archive's entry {name[:200]!r}: {why}; take it out of the archive")


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _no_proxy(env: Mapping[str, str]) -> list[str]:
    listed = env.get("no_proxy") or env.get("NO_PROXY") or ""
    return [entry.strip().lower() for entry in listed.split(",") if entry.strip()]


def _is_exempt(host: str, port: int, entries: list[str]) -> bool:
    for entry in entries:
        found = re.fullmatch(r"([^:]+|\[.+\])(:[0-9]+)?|.+", entry)  # an address of version 6 has colons of its own
        name, its_port = (found[1] or entry, found[2] or "") if found else (entry, "")
        if its_port not in ("", f":{port}"):
            continue
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name.strip("[]"), strict=False):
                return True
        except ValueError:  # one of them is a name
            domain = name.removeprefix("*").lstrip(".")
            if host == domain or host.endswith(f".{domain}") or name == "*":
                return True
    return False
