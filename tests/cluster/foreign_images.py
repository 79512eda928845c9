"""The images for another architecture than this machine's, built by podman under qemu and started once.

A user says `docker build --platform` or `podman build --platform`, and the base image is pulled. This
takes the same Dockerfile and pulls nothing: the base is made by debootstrap. What comes out is an archive
for each image; no cluster gets it. It must never hand one out whose programs did not start. Called by
`make images-arm64`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.cluster import builders, cache, commands, pins, programs
from tests.cluster.architecture import Architecture
from tests.cluster.builders import Builder
from tests.cluster.cache import Product
from tests.cluster.failure import ClusterError
from tests.cluster.images import LOCAL_PREFIX, SOURCES, base_root, copy_sources, prepare, wheels
from tests.cluster.progress import Progress

# The Python of `pins.DEBIAN_SUITE`, which is what the base has.
PYTHON = (3, 11)
BASE = f"{LOCAL_PREFIX}/base:debian"
# In the words of the programs; each starts its interpreter, its modules and its libraries.
STARTS: dict[str, dict[tuple[str, ...], str]] = {
    "operator": {("python3", "-m", "terrahalt_operator"): "TERRAHALT_NAMESPACE is not set"},
    "agent": {
        ("python3", "-m", "terrahalt_agent"): "TERRAHALT_POD_NAME is not set",
        ("terraform", "version"): f"Terraform v{pins.TERRAFORM}",
        ("git", "--version"): "git version",
        ("ssh", "-V"): "OpenSSH",
    },
}


def build(architecture: Architecture, progress: Progress) -> dict[str, Path]:
    """Target -> archive. Raises ClusterError."""
    builders.need(architecture)
    engine = programs.built(programs.TERRAFORM, architecture, progress)
    downloaded = wheels(PYTHON, architecture, progress)
    base = base_root(architecture)
    builder = Builder("podman", progress.make(_store(architecture, base, progress)), architecture)
    archives = {}
    with tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as folder:
        context = Path(folder)
        copy_sources(context)
        prepare(context, downloaded, {programs.TERRAFORM.name: engine})
        for target in SOURCES:
            tag = f"{LOCAL_PREFIX}/{target}:{architecture.debian}"
            with progress.step(f"build and start the image {tag} under qemu", cold="2 min"):
                builder.build(context, target, BASE, tag)
                _check(builder, target, tag)
                archives[target] = cache.folder("images") / f"{target}-{architecture.debian}.tar"
                archives[target].unlink(missing_ok=True)
                builder.save(tag, archives[target])
    return archives


def _store(architecture: Architecture, base: Product, progress: Progress) -> Product:
    root = progress.make(base) / "root"

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as drafts:
            archive = Path(drafts) / "base.tar"
            commands.run(["tar", "-C", root, "-cf", archive, "."], log="image-base")
            Builder("podman", folder, architecture).import_root(archive, BASE)

    return builders.store(f"podman-{architecture.debian}", base.key, fill)


def _check(builder: Builder, target: str, tag: str) -> None:
    found = builder.config(tag)["architecture"]
    if builder.architecture and found != builder.architecture.debian:
        raise ClusterError(f"{tag} is for {found}: the base image is not for {builder.architecture.debian}")
    for argv, expected in STARTS[target].items():
        said = builder.output(tag, argv)
        if expected not in said:
            raise ClusterError(f"`{' '.join(argv)}` in {tag} did not say {expected!r} but:\n{said}")
