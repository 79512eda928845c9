"""Debian: packages of this machine, and root file systems from debootstrap.

It installs packages only as root on a machine with apt-get, says which, and starts none of their
services. Called by whoever needs a package (`private_engine`, `programs`, `builders`) or a root file
system (`node_image`, `images`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import commands, emulation, pins
from tests.cluster.architecture import Architecture
from tests.cluster.cache import Product, content_key
from tests.cluster.failure import ClusterError
from tests.cluster.speech import say

POLICY = Path("/usr/sbin/policy-rc.d")
# What no program of a container reads.
PRUNED = (
    "debootstrap",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
)


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages_of_programs: Mapping[str, str], *, why: str) -> None:
    """Installs the packages of those programs that are missing; a no-op when none is.

    Raises ClusterError where apt-get can't be used."""
    wanted = sorted({package for program, package in packages_of_programs.items() if not _which(program)})
    if not wanted:
        return
    if not can_install():
        raise ClusterError(
            f"{why} needs {', '.join(wanted)} (names of Debian): "
            "install them, or run this as root on a machine with apt-get"
        )
    say(f"      apt-get installs on this machine: {' '.join(wanted)} ({why})")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    commands.run(["apt-get", "update"], log="apt", env=quiet)
    with _no_service_starts():
        commands.run(["apt-get", "install", "--yes", "--no-install-recommends", *wanted], log="apt", env=quiet)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian's own switch: a package's service stays off while this file says so."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def root_file_system(
    name: str, packages: Sequence[str], *, cold: str, architecture: Architecture | None = None
) -> Product:
    """The product holds the folder `root`, owned by root as in a real system. None: of this machine's architecture."""
    # None: debootstrap's own for this suite.
    mirror = os.environ.get("TERRAHALT_DEBIAN_MIRROR")

    emulator = emulation.prefix(architecture) if architecture else []
    programs = emulation.programs(architecture) if architecture else {}
    foreign = [f"--arch={architecture.debian}"] if architecture else []

    def build(folder: Path) -> None:
        if os.geteuid() != 0:
            raise ClusterError(
                f"the image of {name} can't be pulled, and building it takes root (debootstrap): "
                "make the registry reachable, or run this as root"
            )
        install(
            {"debootstrap": "debootstrap", "unshare": "util-linux", **programs},
            why=f"the root file system of {name}",
        )
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        if not keyring.exists():
            install({"no-such-program": "debian-archive-keyring"}, why="checking Debian's signatures")
        root = folder / "root"
        # Mounts and processes of an interrupted debootstrap end with its namespaces.
        commands.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", *emulator, "debootstrap",
             *foreign, "--variant=minbase", f"--include={','.join(packages)}",
             pins.DEBIAN_SUITE, root, *([mirror] if mirror else [])],
            log=f"debootstrap-{name}",
            env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        for folder_name in PRUNED:
            shutil.rmtree(root / folder_name, ignore_errors=True)
        logs = (root / "var/log").rglob("*.log")
        notices = (root / "usr/share/doc").rglob("*")
        for file in (*logs, *(path for path in notices if path.name != "copyright")):
            if file.is_symlink() or file.is_file():
                file.unlink()

    key = content_key("debootstrap", pins.DEBIAN_SUITE, *foreign, *packages, *PRUNED)
    return Product(f"root-{name}", key, f"fetch the Debian packages of {name}", cold, build)
