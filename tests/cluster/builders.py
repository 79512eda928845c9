"""Podman and buildah: images that are not built by the Docker engine.

Each command runs in namespaces of its own, with a store in the cache. What podman otherwise leaves on a
machine, mounts and folders under /run and /var/lib, ends with the command; a bridge and firewall rules
are not made, because builds use the machine's network. It takes root, and must never touch the machine's
own store. Called by `foreign_images` and by tests/images.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import cache, commands, debian, emulation
from tests.cluster.architecture import Architecture
from tests.cluster.cache import PROJECT, Product, content_key
from tests.cluster.failure import ClusterError

LISTING = cache.SOURCE / "listing.py"
# Where both have their store by themselves, so that they run as they do for a user.
_ENTER = """
cd "$1"
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/containers
mount --bind . /var/lib/containers
names=$(cat /etc/resolv.conf)
mount -t tmpfs tmpfs /run
# Where something writes it anew for each network, it is a link to there.
resolver=$(readlink -m /etc/resolv.conf)
case $resolver in /run/*) mkdir -p "${resolver%/*}" && echo "$names" > "$resolver" ;; esac
cd "$2"
shift 2
exec "$@"
"""
# buildah looks into the images of both, and runs a program in them without a runtime like runc, which
# needs cgroups and rights that a machine may lack.
_IN_A_CONTAINER = 'c=$(buildah from --pull-never "$1"); shift; trap "buildah rm $c > /dev/null" EXIT; '


@dataclass(frozen=True)
class Builder:
    program: str
    store: Path
    # Of the images; None is this machine's.
    architecture: Architecture | None = None

    def build(self, context: Path, target: str, base: str, tag: str) -> None:
        """Raises ClusterError."""
        foreign = [f"--platform=linux/{self.architecture.debian}"] if self.architecture else []
        self._run(
            [self.program, "build", *foreign, "--network=host", "--layers", "--target", target,
             "--build-arg", f"BASE_IMAGE={base}", "--tag", tag, "."],
            cwd=context, log=f"{self.program}-{target}",
        )  # fmt: skip

    def load(self, archive: Path) -> None:
        """What `docker save` wrote, under its name there."""
        self._run(["podman", "load", "--quiet", "--input", archive], log=self.program)

    def import_root(self, archive: Path, tag: str) -> None:
        foreign = ["--arch", self.architecture.debian] if self.architecture else []
        self._run(["podman", "import", "--quiet", *foreign, archive, tag], log=self.program)

    def save(self, tag: str, archive: Path) -> None:
        """As an archive that every engine loads."""
        self._run(["podman", "save", "--quiet", "--output", archive, tag], log=self.program)

    def has_image(self, tag: str) -> bool:
        return commands.succeeds(self._enclosed(["podman", "image", "exists", tag]))

    def config(self, tag: str) -> dict[str, Any]:
        """The OCI configuration of the image: its architecture, and what it runs."""
        text = commands.output(self._enclosed(["buildah", "inspect", "--type=image", tag]))
        document: dict[str, Any] = json.loads(text)["OCIv1"]
        return document

    def files(self, tag: str) -> dict[str, list[Any]]:
        """Each path of the image, and all about it that a container sees but its times."""
        walk = f'{shlex.quote(sys.executable)} -ES {shlex.quote(str(LISTING))} "$(buildah mount "$c")"'
        files: dict[str, list[Any]] = json.loads(self._in_a_container(tag, walk, ()))
        return files

    def output(self, tag: str, argv: Sequence[str]) -> str:
        """What a program of the image says, on both of its outputs, whatever its exit code."""
        return self._in_a_container(tag, 'buildah run --isolation=chroot "$c" -- "$@" 2>&1 || true', argv)

    def _in_a_container(self, tag: str, script: str, argv: Sequence[str]) -> str:
        words = ["sh", "-euc", _IN_A_CONTAINER + script, "sh", tag, *argv]
        return commands.output(self._enclosed(words), env=self._environment, timeout_s=300)

    def _run(self, words: Sequence[str | Path], *, log: str, cwd: Path = Path("/")) -> None:
        commands.run(self._enclosed(words, cwd), log=log, env=self._environment)

    @property
    def _environment(self) -> Mapping[str, str]:
        # podman builds with a runtime, as it does for a user, unless qemu runs what is built.
        without_runtime = {} if self.program == "podman" and not self.architecture else {"BUILDAH_ISOLATION": "chroot"}
        return {"TMPDIR": str(cache.folder("tmp")), **without_runtime}

    def _enclosed(self, words: Sequence[str | Path], cwd: Path = Path("/")) -> list[str]:
        emulator = emulation.prefix(self.architecture) if self.architecture else []
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "sh", "-euc", _ENTER, "sh", str(self.store), str(cwd), *emulator, *map(str, words),
        ]  # fmt: skip


def store(name: str, base: str, fill: cache.Build) -> Product:
    """A folder for `Builder.store`, with the image that `fill` puts into it; layers are kept there.

    `base` says which image that is. When it or what most layers are made of changes, a new store begins:
    else it would grow for ever. An old one is large, so it goes a day after its last use."""
    key = content_key(base, *(PROJECT / name for name in ("Dockerfile", "images", "requirements")))
    return Product(f"store-{name}", key, f"load the base image into a store of {name}", "15 s", fill, kept_s=24 * 3600)


def need(architecture: Architecture | None = None) -> None:
    """Installs them where they are missing. Raises ClusterError where that can't be, or without root."""
    if os.geteuid() != 0:
        raise ClusterError("podman and buildah are run in namespaces of their own here: run this as root")
    foreign = emulation.programs(architecture) if architecture else {}
    wanted = {"podman": "podman", "buildah": "buildah", "unshare": "util-linux", **foreign}
    debian.install(wanted, why="building images without Docker")
