"""The folder where everything lies that is built or downloaded once: keys, finished products, the lock.

A product is a folder named after its content key (a hash of all that goes into it). It is built in a
folder of its own and renamed when complete: what exists under its name is whole, whatever was
interrupted before. It must never change a finished product. Layout:

    built/<name>-<key>/   finished products          logs/        output of the programs that we ran
    tmp/                  products being built       clusters/    what `up` made, and kubeconfigs
    docker/               data of the private Docker engine
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.failure import ClusterError
from tests.cluster.speech import say

SOURCE = Path(__file__).resolve().parent
PROJECT = SOURCE.parent.parent
# Products of other checkouts share the folder; what nobody used for this long goes.
UNUSED_AFTER_S = 14 * 24 * 3600


def root() -> Path:
    chosen = os.environ.get("TERRAHALT_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "terrahalt"


def folder(name: str) -> Path:
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def log_file(name: str) -> Path:
    return folder("logs") / f"{name}.log"


def content_key(*parts: str | Path) -> str:
    """12 hex digits. A path stands for the content of that file, or of all files under that folder."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(b"text\0" + part.encode() + b"\0")
            continue
        for file in sorted(_files(part)):
            name = str(file.relative_to(part)) if part.is_dir() else part.name
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            executable = bool(file.stat().st_mode & 0o100)
            digest.update(f"file\0{name}\0{executable}\0{content}\0".encode())
    return digest.hexdigest()[:12]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ClusterError(f"{path} is missing: it goes into something that the cluster tool builds")
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


Build = Callable[[Path], None]


@dataclass(frozen=True)
class Product:
    """Something built once: `build` fills the empty folder that it is given."""

    name: str
    key: str
    title: str
    cold: str
    build: Build
    kept_s: float = UNUSED_AFTER_S

    @property
    def path(self) -> Path:
        return root() / "built" / f"{self.name}-{self.key}"

    @property
    def is_built(self) -> bool:
        if not self.path.is_dir():
            return False
        os.utime(self.path)
        return True


def make(product: Product) -> Path:
    """The finished folder, built if needed. The caller holds the lock."""
    if product.is_built:
        return product.path
    draft = Path(tempfile.mkdtemp(prefix=f"{product.name}-", dir=folder("tmp")))
    try:
        result = draft / "result"
        result.mkdir()
        product.build(result)
        folder("built")
        result.rename(product.path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _remove_unused(product)
    return product.path


def _remove_unused(product: Product) -> None:
    for sibling in product.path.parent.glob(f"{product.name}-{'?' * len(product.key)}"):
        if sibling != product.path and time.time() - sibling.stat().st_mtime > product.kept_s:
            shutil.rmtree(sibling, ignore_errors=True)


@contextmanager
def lock() -> Iterator[None]:
    """One run at a time for each cache folder. The kernel gives it back whatever ends the holder."""
    path = folder(".") / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"waiting for the other run of the cluster tool (process {file.read().strip()}) to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        # Nobody else builds now: what lies here was left by a run that was killed.
        shutil.rmtree(root() / "tmp", ignore_errors=True)
        yield
