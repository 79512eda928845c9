"""Where the programs come from that agents run, terraform and tofu.

A file that the user names, the program on PATH when it has the pinned version, the release (downloaded
and checked by images/fetch_engine.py), and as the last resort the same source code from the Go module
proxy. It must never take a program that reports another version. Called by `tools`, `images`,
`foreign_images` and the suites.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import cache, commands, debian, golang, pins
from tests.cluster.architecture import Architecture
from tests.cluster.cache import PROJECT, Product, content_key
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.progress import Progress
from tests.cluster.speech import say

FETCH = PROJECT / "images" / "fetch_engine.py"


@dataclass(frozen=True)
class Program:
    """One that an agent runs."""

    name: str
    """On PATH, in an image, and of the folder here that it is compiled in."""
    title: str
    """What it calls itself."""
    version: str
    key: str
    """Of its maker: the file in images/."""
    module: str
    package: str
    cold: str
    """How long compiling takes."""

    @property
    def variable(self) -> str:
        """Names a file of the user's own."""
        return f"TERRAHALT_{self.name.upper()}"


TERRAFORM = Program(
    name="terraform",
    title="Terraform",
    version=pins.TERRAFORM,
    key="hashicorp.asc",
    module="github.com/hashicorp/terraform",
    package="github.com/hashicorp/terraform",
    cold="7 min",
)
TOFU = Program(
    name="tofu",
    title="OpenTofu",
    version=pins.TOFU,
    key="opentofu.asc",
    module="github.com/opentofu/opentofu",
    package="github.com/opentofu/opentofu/cmd/tofu",
    cold="4 min",
)
PROGRAMS = {program.name: program for program in (TERRAFORM, TOFU)}


def path(program: Program, progress: Progress) -> Path:
    """Raises ClusterError. The caller holds the lock of the cache."""
    return found(program) or built(program, None, progress)


def built(program: Program, architecture: Architecture | None, progress: Progress) -> Path:
    """For another machine; None is this one."""
    release, compiled = _release(program, architecture), _compiled(program, architecture)
    for product in (release, compiled):
        if product.is_built:
            return product.path / program.name
    try:
        return progress.make(release) / program.name
    except CommandFailed as failure:
        say(f"      {failure}\n      it is compiled from the Go module instead")
    return progress.make(compiled) / program.name


def found(program: Program) -> Path | None:
    """What is there already; None: it has to be made. Raises ClusterError."""
    chosen = os.environ.get(program.variable)
    if chosen:
        reported = _version(program, chosen)
        if reported != program.version:
            raise ClusterError(
                f"{program.variable}={chosen} is not {program.name} {program.version} "
                f"(it reports {reported or 'nothing'}): name another file, or unset it"
            )
        return Path(chosen).resolve()
    on_path = shutil.which(program.name)
    if on_path and platform.system() == "Linux" and _version(program, on_path) == program.version:
        return Path(on_path)
    products = (_release(program, None), _compiled(program, None))
    return next((product.path / program.name for product in products if product.is_built), None)


def _version(program: Program, file: str) -> str | None:
    # Else terraform asks its maker's server about newer versions.
    quiet = {"CHECKPOINT_DISABLE": "1"}
    try:
        text = commands.output([file, "version"], env=quiet)
    except (CommandFailed, OSError):
        return None
    reported = re.search(rf"^{program.title} v(\S+)", text, re.MULTILINE)  # warnings may come before it
    return reported[1] if reported else None


def _release(program: Program, architecture: Architecture | None) -> Product:
    machine = ["--machine", architecture.kernel] if architecture else []

    def build(folder: Path) -> None:
        debian.install({"gpg": "gnupg"}, why=f"checking the signature of {program.name}")
        fetch = [sys.executable, FETCH, program.name, "--version", program.version, *machine]
        commands.run([*fetch, "--into", folder / program.name], log=program.name)

    key = content_key(program.version, *machine, FETCH, FETCH.with_name(program.key))
    return Product(program.name, key, f"download {program.name} {program.version}", "20 s", build)


def _compiled(program: Program, architecture: Architecture | None) -> Product:
    # Else it reports a version of developers, and says so in every state that it writes.
    version = {f"{program.module}/version.dev": "no"}
    return golang.compiled(
        program.name, cache.SOURCE / program.name, cold=program.cold, variables=version, package=program.package,
        architecture=architecture,
    )  # fmt: skip
