"""The providers that agents share: a directory that they all see, filled by renames and never changed.

An entry is HOST/NAMESPACE/TYPE/VERSION/PLATFORM with the unpacked package and its checksum. It is made beside, and
comes into its place whole, by one rename, which fails where another agent was first: so whoever finds an entry finds
all of it, for ever. An engine never sees the directory itself: each run has a plugin cache of its own, in which the
entries are links. Its writes (terraform's are not safe beside another's) stay in there, and what is new in it after
`init` is shared. Called by `workdir`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from terrahalt_agent.core.providers import checksum, may_use

_INCOMING = ".incoming"
_PACKAGE, _CHECKSUM = "package", "h1"
_CHUNK_BYTES = 1024 * 1024
_FORGOTTEN_S = 24 * 3600.0
"""What was being copied so long ago, its agent did not live to finish."""


class Stopped(Exception):
    """Nobody waits for it any more."""


class ProviderCache:
    def __init__(self, root: Path, platform: str) -> None:
        """`platform` as engines call it, for example linux_amd64."""
        self._root = root
        self._incoming = root / _INCOMING
        self._platform = platform
        self._uses: list[None] = []

    @property
    def is_in_use(self) -> bool:
        """Somebody still waits for the volume, also where nobody waits for him any more."""
        return bool(self._uses)

    def check(self) -> None:
        """Raises OSError where it can't be used."""
        self._incoming.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self._incoming):
            pass

    def link(self, into: Path, locks: Mapping[str, frozenset[str]]) -> None:
        """Makes the directory `into` a plugin cache with all entries that a run may use. Raises OSError."""
        into.mkdir(mode=0o700)
        with self._used():
            for entry in _packages(self._root, self._platform):
                where = entry.relative_to(self._root)
                if may_use(str(Path(*where.parts[:3])), _checksum_of(entry), locks):
                    (into / where).parent.mkdir(parents=True, exist_ok=True)
                    (into / where).symlink_to(entry / _PACKAGE)

    def share(self, plugins: Path, stop: threading.Event) -> list[str]:
        """Makes an entry of each package that an engine has put into `plugins`; who it was, for people. Raises OSError,
        or Stopped once `stop` is set; then nothing of the package that was under way is left."""
        shared = []
        with self._used():
            for package in _packages(plugins, self._platform):
                where = package.relative_to(plugins)
                if not package.is_symlink() and not (self._root / where).exists() and self._add(package, where, stop):
                    shared.append(str(Path(*where.parts[:4])))
            self._forget()
        return shared

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        self._uses.append(None)
        try:
            yield
        finally:
            self._uses.pop()

    def _add(self, package: Path, where: Path, stop: threading.Event) -> bool:
        """False: another agent was first."""
        entry = Path(tempfile.mkdtemp(dir=self._incoming))
        try:
            entry.chmod(0o755)
            files = _copy(package, entry / _PACKAGE, stop)
            (entry / _CHECKSUM).write_text(checksum(files))
            (self._root / where).parent.mkdir(parents=True, exist_ok=True)
            entry.rename(self._root / where)
            for folder in [path for path in (self._root / where / _PACKAGE).rglob("*") if path.is_dir()]:
                folder.chmod(0o555)
            (self._root / where / _PACKAGE).chmod(0o555)
        except BaseException as error:
            shutil.rmtree(entry, ignore_errors=True)
            if isinstance(error, OSError) and (self._root / where).exists():
                return False
            raise
        return True

    def _forget(self) -> None:
        for entry in self._incoming.iterdir():
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < time.time() - _FORGOTTEN_S:
                    shutil.rmtree(entry, ignore_errors=True)


def _checksum_of(entry: Path) -> str:
    """Empty: any task of the pool may have written anything there, or nothing."""
    path = entry / _CHECKSUM
    return path.read_text(errors="replace") if path.is_file() else ""


def _packages(root: Path, platform: str) -> Iterator[Path]:
    """HOST/NAMESPACE/TYPE/VERSION/PLATFORM"""
    return (path for path in root.glob(f"[!.]*/*/*/*/{platform}") if path.is_dir())


def _copy(package: Path, to: Path, stop: threading.Event) -> dict[str, str]:
    """Each file and, in hex, its SHA-256."""
    files = {}
    for path in sorted(package.rglob("*")):
        target = to / path.relative_to(package)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            files[str(path.relative_to(package))] = _copy_file(path, target, stop)
    return files


def _copy_file(path: Path, target: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as read, target.open("xb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
            written.write(chunk)
        written.flush()
        os.fsync(written.fileno())  # the name may outlive a power cut that the bytes do not
    target.chmod(path.stat().st_mode & 0o555)
    return digest.hexdigest()
