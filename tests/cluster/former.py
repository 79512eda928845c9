"""Another version of this project: the files of a commit, for tests that upgrade from it and roll back to it.

Its images are built by this checkout's tool. It must never change the checkout or its repository. Called by the
package's functions, which hold the lock.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster import commands
from tests.cluster.cache import PROJECT, Product
from tests.cluster.failure import ClusterError, CommandFailed


def checkout(commit: str) -> Product:
    """Raises ClusterError, when it is made, where the repository does not have it."""

    def build(folder: Path) -> None:
        archive = folder.with_suffix(".tar")
        try:
            commands.output(["git", "-C", PROJECT, "archive", f"--output={archive}", commit])
        except (CommandFailed, OSError) as error:
            raise ClusterError(
                f"the commit {commit} can't be had from the repository of {PROJECT}, "
                f"which upgrades are tried from: git fetch --unshallow\n{error}"
            ) from error
        commands.output(["tar", "-C", folder, "-xf", archive])

    return Product("checkout", commit[:12], f"the files of {commit}", "1 s", build)
