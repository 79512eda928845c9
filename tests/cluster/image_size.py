"""How large an image is, and what of it is the engine, git or ours: `python3 -m tests.cluster.image_size REF`.

Counts the bytes of the files in the root file system, as it is after all layers. Never changes an image.
Called by a test that holds the agent's size, and by hand.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass

from tests.cluster.engine import Engine, running
from tests.cluster.failure import ClusterError

ENGINES = ("usr/local/bin/terraform", "usr/local/bin/tofu")
# Written by images/collect_git.py: the files of git, of ssh, and of what they link to.
GIT_FILES = "usr/share/terrahalt/git-files"
DEPENDENCIES = "opt/terrahalt/dependencies/"


@dataclass(frozen=True)
class ImageSize:
    """All in bytes; `rest` is the system with Python, and our code."""

    engine: int
    git: int
    dependencies: int
    rest: int

    @property
    def without_engine_and_git(self) -> int:
        return self.dependencies + self.rest


def measure(on: Engine, reference: str) -> ImageSize:
    container = on.output(["create", reference])
    try:
        sizes, git_files = _exported(on, container)
    finally:
        on.output(["rm", container])
    engine = sum(sizes.pop(path, 0) for path in ENGINES)
    git = sum(sizes.pop(path, 0) for path in git_files)
    dependencies = sum(size for path, size in sizes.items() if path.startswith(DEPENDENCIES))
    return ImageSize(engine, git, dependencies, sum(sizes.values()) - dependencies)


def _exported(on: Engine, container: str) -> tuple[dict[str, int], list[str]]:
    sizes: dict[str, int] = {}
    git_files: list[str] = []
    with (
        subprocess.Popen(
            on.command(["export", container]), env=on.full_environment(), stdout=subprocess.PIPE
        ) as export,
        tarfile.open(fileobj=export.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile():
                sizes[member.name] = member.size
                if member.name == GIT_FILES and (content := tar.extractfile(member)):
                    git_files = content.read().decode().split("\n")[:-1]
        assert export.stdout is not None
        export.stdout.read()  # what fills up the archive: into a pipe that is closed before, nobody can write it
    if export.returncode != 0:
        raise ClusterError(f"docker export of a container of {container} failed: look at the lines above")
    return sizes, git_files


def main(references: list[str]) -> int:
    on = running()
    if on is None:
        raise SystemExit("no Docker engine runs: make cluster-up")
    print(f"{'MB uncompressed':>16} {'engine':>10} {'git':>6} {'packages':>9} {'rest':>6} {'packages+rest':>14}")
    for reference in references:
        size = measure(on, reference)
        mb = [part / 1e6 for part in (size.engine, size.git, size.dependencies, size.rest)]
        total, without = sum(mb), size.without_engine_and_git / 1e6
        print(f"{total:16.1f} {mb[0]:10.1f} {mb[1]:6.1f} {mb[2]:9.1f} {mb[3]:6.1f} {without:14.1f}  {reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
