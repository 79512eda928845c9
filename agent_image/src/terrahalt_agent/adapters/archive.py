"""Fetches an archive over http(s) and unpacks it: what it may be, and hold, is in `core.archive`.

No process of its own: a cancel stops a download at once, and an unpacking, which is a thread, at its next megabyte.
What it has written by then stays where it is. Called by `workdir`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import ssl
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import aiohttp

from terrahalt_agent.adapters.fetched_tree import Fetched, module_of
from terrahalt_agent.core import archive
from terrahalt_agent.core.access import Access
from terrahalt_agent.core.archive import Contents, Entry
from terrahalt_agent.core.source import CREDENTIALS_INVALID, SourceError
from terrahalt_protocol.messages import ArchiveSource

_CHUNK_BYTES = 1024 * 1024
_MAX_LIST_BYTES = 4 * 1024 * 1024
"""Of what the libraries read into memory at once: a zip's directory, a tar's long header."""
_CONNECT_S = 30.0
_MAX_TARGET_BYTES = 4096
_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")


class _Stopped(Exception):
    """Nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Archives:
    max_packed_bytes: int = archive.MAX_PACKED_BYTES
    max_bytes: int = archive.MAX_BYTES
    max_files: int = archive.MAX_FILES
    within_s: float = archive.WITHIN_S

    async def fetch(
        self, source: ArchiveSource, access: Access, *, into: Path, file: Path, env: Mapping[str, str]
    ) -> Fetched:
        """Its tree, in the empty directory `into`; `file`, which must not be there, is gone then.

        Raises SourceError; OSError of the disk goes through. `env`: that of terraform, for proxies and authorities."""
        archive.check(source)
        stop = threading.Event()
        try:
            async with asyncio.timeout(self.within_s):
                await self._download(source, access, file, env)
                return await asyncio.to_thread(self._unpack, source, file, into, stop)
        except TimeoutError as error:
            raise archive.too_late(source, self.within_s) from error
        finally:
            stop.set()

    async def _download(self, source: ArchiveSource, access: Access, file: Path, env: Mapping[str, str]) -> None:
        context = await asyncio.to_thread(_trusted, access, env)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=archive.SILENT_S)
        url = source.url
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=timeout,
                auto_decompress=False,
            ) as session:
                for _ in range(archive.MAX_REDIRECTS + 1):
                    async with session.get(
                        url,
                        headers=archive.headers(url, source, access),
                        proxy=archive.proxy(url, env),
                        allow_redirects=False,
                    ) as response:
                        location = response.headers.get("Location", "")
                        if response.status in (301, 302, 303, 307, 308) and location:
                            url = archive.sent_on(url, location)
                            continue
                        if (problem := archive.answered(source, response.status)) is not None:
                            raise problem
                        await self._keep(source, response, file)
                        return
        except aiohttp.ClientConnectorCertificateError as error:
            raise archive.not_trusted(source, str(error.certificate_error)) from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:  # their texts have the whole address
            said = error.message if isinstance(error, aiohttp.ClientResponseError) else ""
            raise archive.unreachable(source, said or type(error).__name__) from error
        except aiohttp.ClientError as error:
            raise archive.unreachable(source, str(error) or type(error).__name__) from error
        raise archive.failed(source, f"it was sent on more than {archive.MAX_REDIRECTS} times: correct its url")

    async def _keep(self, source: ArchiveSource, response: aiohttp.ClientResponse, file: Path) -> None:
        """Raises SourceError where it is too large, or another one."""
        digest, size, kept = hashlib.sha256(), 0, bytearray()

        def write(output: BinaryIO, content: bytes) -> None:
            digest.update(content)
            output.write(content)

        with _made(file) as output:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self.max_packed_bytes:
                    raise archive.too_large(source, self.max_packed_bytes)
                kept += chunk
                if len(kept) >= _CHUNK_BYTES:
                    await asyncio.to_thread(write, output, bytes(kept))
                    kept.clear()
            await asyncio.to_thread(write, output, bytes(kept))
        if digest.hexdigest() != source.sha256:
            raise archive.another(source, digest.hexdigest())

    def _unpack(self, source: ArchiveSource, file: Path, into: Path, stop: threading.Event) -> Fetched:
        tree = _Tree(into, Contents(max_bytes=self.max_bytes, max_files=self.max_files), stop)
        with file.open("rb") as packed:
            beginning = packed.read(len(_ZIP[0]))
        with _understood(source):
            if beginning.startswith(_GZIP):
                tar = file.with_name(f"{file.name}.tar")
                self._inflate(file, tar, stop)
                _unpack_tar(tar, tree)
                tar.unlink()
            elif beginning in _ZIP:
                _unpack_zip(file, tree)
            else:
                raise archive.unreadable(source, "as it begins neither as a gzip nor as a zip")
        file.unlink()
        return Fetched(module_of(into, source.path, kind="archive", of="the archive"))

    def _inflate(self, packed: Path, tar: Path, stop: threading.Event) -> None:
        bound = Contents(max_bytes=self.max_bytes, max_files=0)
        with gzip.open(packed) as content, _made(tar) as output:
            while chunk := content.read(_CHUNK_BYTES):
                _go_on(stop)
                bound.grow(len(chunk))
                output.write(chunk)


class _Tree:
    """Links are made when all else is there, so that nothing is ever written through one."""

    def __init__(self, into: Path, contents: Contents, stop: threading.Event) -> None:
        self._into, self._contents, self._stop = into, contents, stop
        self._links: list[tuple[Path, str]] = []

    def directory(self, name: str) -> None:
        _go_on(self._stop)
        (self._into / self._contents.add(name, Entry.DIRECTORY)).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, content: IO[bytes], *, is_executable: bool) -> None:
        path = self._into / self._contents.add(name, Entry.FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _made(path, 0o755 if is_executable else 0o644) as output:
            while chunk := content.read(_CHUNK_BYTES):
                _go_on(self._stop)
                self._contents.grow(len(chunk))
                output.write(chunk)

    def link(self, name: str, target: str) -> None:
        self._links.append((self._into / self._contents.add(name, Entry.LINK), target))

    def finish(self) -> None:
        for path, target in self._links:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)


def _unpack_tar(file: Path, tree: _Tree) -> None:
    with _Bounded(file) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            name = member.name
            if member.isdir():
                tree.directory(name)
            elif member.issym():
                tree.link(name, member.linkname)
            elif member.isfile() and not member.issparse():
                content = tar.extractfile(member)
                assert content is not None
                tree.file(name, content, is_executable=bool(member.mode & 0o100))
            else:
                raise archive.refused(name, "it is no plain file, directory or symbolic link")
    tree.finish()


def _unpack_zip(file: Path, tree: _Tree) -> None:
    with _Bounded(file) as opened, zipfile.ZipFile(opened) as packed:
        for info in packed.infolist():
            name, mode = info.filename, info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.flag_bits & 1:
                raise archive.refused(name, "it is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise archive.refused(name, "it is packed by another method than deflate")
            if info.is_dir():
                tree.directory(name)
            elif kind == stat.S_IFLNK:
                with packed.open(info) as content:
                    tree.link(name, os.fsdecode(content.read(_MAX_TARGET_BYTES)))
            elif kind in (0, stat.S_IFREG):
                with packed.open(info) as content:
                    tree.file(name, content, is_executable=bool(mode & 0o100))
            else:
                raise archive.refused(name, "it is no plain file, directory or symbolic link")
    tree.finish()


class _Bounded(io.BufferedReader):
    """A file of which nobody takes more into memory at once than a list of many files needs."""

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file))

    def read(self, size: int | None = -1, /) -> bytes:
        is_all = size is None or size < 0
        found = super().read(_MAX_LIST_BYTES + 1 if is_all else size)
        if len(found) > _MAX_LIST_BYTES:
            raise SourceError("the archive has a list of its files, or a header, that is too long: make it smaller")
        return found


@contextmanager
def _understood(source: ArchiveSource) -> Iterator[None]:
    """The libraries raise whatever comes to them from bytes that somebody has made up."""
    try:
        yield
    except (SourceError, _Stopped):
        raise
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):  # the disk's
            raise
        raise archive.unreadable(source, str(error)) from error
    except Exception as error:
        raise archive.unreadable(source, str(error) or type(error).__name__) from error


@contextmanager
def _made(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """New, and no link."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as output:
        yield output


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped


def _trusted(access: Access, env: Mapping[str, str]) -> ssl.SSLContext:
    """By the names that terraform knows, in its environment. Raises SourceError."""
    try:
        if access.ca:
            context = ssl.create_default_context(cadata=access.ca)
        elif file := env.get("SSL_CERT_FILE"):
            context = ssl.create_default_context(cafile=file)
        else:
            context = ssl.create_default_context()
        folders = env.get("SSL_CERT_DIR", "") if not access.ca else ""
        for folder in filter(None, folders.split(":")):
            context.load_verify_locations(capath=folder)
    except (ssl.SSLError, OSError) as error:
        text = f"the certificates of source.archive.caRef, or of SSL_CERT_FILE, can't be read: {error}: correct them"
        raise SourceError(text, CREDENTIALS_INVALID) from error
    # As git and terraform do: authorities of companies often lack what it asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
