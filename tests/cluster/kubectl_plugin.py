"""`kubectl terrahalt`: built for this machine, or packed for every platform that kubectl has.

The archives come with their checksums and a manifest for krew that is made from them. Packing twice gives the same
bytes. Called by `make plugin` and `make plugin-dist`, and by tests/plugin.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import golang
from tests.cluster.architecture import AMD64, ARM64, Architecture
from tests.cluster.cache import PROJECT, Product
from tests.cluster.progress import Progress

SOURCE = PROJECT / "kubectl_plugin"
NAME = "kubectl-terrahalt"
COLD = "1 min"

_MANIFEST = """\
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: terrahalt
spec:
  version: v{version}
  shortDescription: Run Terraform in Kubernetes, and really halt it
  description: |
    Runs, cancels, approves and shows TerraformTasks of Terrahalt. A cancel is shown
    rung by rung, until no process of the run is alive.
  platforms:
"""
_PLATFORM = """\
    - selector:
        matchLabels:
          os: {system}
          arch: {architecture}
      uri: {uri}
      sha256: {checksum}
      bin: {program}
      files:
        - from: {program}
          to: .
        - from: LICENSE
          to: .
"""


@dataclass(frozen=True)
class Platform:
    system: str
    architecture: Architecture

    @property
    def program(self) -> str:
        return f"{NAME}.exe" if self.system == "windows" else NAME

    @property
    def archive(self) -> str:
        ending = "zip" if self.system == "windows" else "tar.gz"
        return f"{NAME}_{self.system}_{self.architecture.debian}.{ending}"


PLATFORMS = tuple(Platform(system, each) for system in ("linux", "darwin", "windows") for each in (AMD64, ARM64))


def version() -> str:
    project: str = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return project


def product(platform: Platform | None = None) -> Product:
    """None: for this machine."""
    return golang.compiled(
        NAME,
        SOURCE,
        cold=COLD,
        variables={"main.version": version()},
        system=platform.system if platform else "",
        architecture=platform.architecture if platform else None,
    )


def program(progress: Progress) -> Path:
    """The caller holds the lock of the cache."""
    return progress.make(product()) / NAME


def pack(folder: Path, progress: Progress, platforms: Sequence[Platform] = PLATFORMS, address: str = "") -> Path:
    """Fills the folder with archives, SHA256SUMS and the manifest, whose path it returns.

    `address`: of the folder that the archives are downloaded from; empty: the manifest has their names alone, which is
    enough for `kubectl krew install --manifest=... --archive=...`. The caller holds the lock of the cache."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest, sums = _MANIFEST.format(version=version()), ""
    for platform in platforms:
        content = _archive(platform, (progress.make(product(platform)) / NAME).read_bytes())
        (folder / platform.archive).write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        sums += f"{checksum}  {platform.archive}\n"
        manifest += _PLATFORM.format(
            system=platform.system,
            architecture=platform.architecture.debian,
            uri=f"{address.rstrip('/')}/{platform.archive}" if address else platform.archive,
            checksum=checksum,
            program=platform.program,
        )
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    path = folder / "terrahalt.yaml"
    path.write_text(manifest, encoding="utf-8")
    return path


def _archive(platform: Platform, content: bytes) -> bytes:
    packed = io.BytesIO()
    files = {platform.program: (content, 0o755), "LICENSE": ((PROJECT / "LICENSE").read_bytes(), 0o644)}
    if platform.system == "windows":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (text, _) in files.items():
                archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
        return packed.getvalue()
    # Without the time of packing.
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tape,
    ):
        for name, (text, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), mode
            tape.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


def put(into: Path, progress: Progress) -> Path:
    """A copy outside of the cache, to be put on PATH. The caller holds the lock of the cache."""
    into.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(program(progress), into / NAME))
