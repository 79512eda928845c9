"""Where the terraform program comes from that the agent's image gets.

A file that the user names, the `terraform` on PATH when it has the pinned version, the release
(downloaded and checked by images/fetch_terraform.py), and as the last resort the same source code
from the Go module proxy. It must never take a program that reports another version. Called by
`tools` and `images`.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from tests.cluster import cache, commands, debian, golang, pins
from tests.cluster.architecture import Architecture
from tests.cluster.cache import PROJECT, Product, content_key
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.progress import Progress
from tests.cluster.speech import say

FETCH = PROJECT / "images" / "fetch_terraform.py"
KEY = PROJECT / "images" / "hashicorp.asc"
SOURCE = cache.SOURCE / "terraform"


def program(progress: Progress | None = None) -> Path:
    """Raises ClusterError."""
    chosen = os.environ.get("TERRAHALT_TERRAFORM")
    if chosen:
        if _version(chosen) != pins.TERRAFORM:
            raise ClusterError(
                f"TERRAHALT_TERRAFORM={chosen} is not terraform {pins.TERRAFORM} "
                f"(it reports {_version(chosen) or 'nothing'}): name another file, or unset it"
            )
        return Path(chosen).resolve()
    found = shutil.which("terraform")
    if found and platform.system() == "Linux" and _version(found) == pins.TERRAFORM:
        return Path(found)
    return built(None, progress or Progress())


def built(architecture: Architecture | None, progress: Progress) -> Path:
    """For another machine; None is this one."""
    release, compiled = _release(architecture), _compiled(architecture)
    for product in (release, compiled):
        if product.is_built:
            return product.path / "terraform"
    try:
        return progress.make(release) / "terraform"
    except CommandFailed as failure:
        say(f"      {failure}\n      it is compiled from the Go module instead")
    return progress.make(compiled) / "terraform"


def _version(path: str) -> str | None:
    # Else it asks HashiCorp's server about newer versions.
    quiet = {"CHECKPOINT_DISABLE": "1"}
    try:
        text = commands.output([path, "version"], env=quiet)
    except (CommandFailed, OSError):
        return None
    reported = re.match(r"Terraform v(\S+)", text)
    return reported[1] if reported else None


def _release(architecture: Architecture | None) -> Product:
    machine = ["--machine", architecture.kernel] if architecture else []

    def build(folder: Path) -> None:
        debian.install({"gpg": "gnupg"}, why="checking terraform's signature")
        fetch = [sys.executable, FETCH, "--version", pins.TERRAFORM, "--key", KEY]
        commands.run([*fetch, *machine, "--into", folder / "terraform"], log="terraform")

    key = content_key(pins.TERRAFORM, *machine, FETCH, KEY)
    return Product("terraform", key, f"download terraform {pins.TERRAFORM}", "20 s", build)


def _compiled(architecture: Architecture | None) -> Product:
    version = {"github.com/hashicorp/terraform/version.dev": "no"}
    return golang.compiled(
        "terraform", SOURCE, cold="7 min", variables=version,
        package="github.com/hashicorp/terraform", architecture=architecture,
    )  # fmt: skip
