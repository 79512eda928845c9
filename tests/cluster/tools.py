"""The programs that the cluster, the tests and the demo use, in the versions of `pins`.

`tool(name)` gives the path of a program and builds it if needed. It must never put anything on PATH or
outside the cache. Called by everybody; the names are those of `NAMES`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.cluster import cache, commands, golang, node_image, pins, programs
from tests.cluster.cache import Product
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.progress import Progress

NAMES = ("kind", "kubectl", "helm", "terraform", "tofu")


def kind() -> Product:
    return golang.installed("kind", "sigs.k8s.io/kind", pins.KIND, cold="30 s")


def helm() -> Product:
    return golang.installed("helm", "helm.sh/helm/v4/cmd/helm", pins.HELM, cold="4 min")


def on_path(name: str, version: str, *arguments: str) -> Path | None:
    """The program on PATH when it is exactly of that version."""
    found = shutil.which(name)
    if not found:
        return None
    try:
        text = commands.output([found, *arguments])
    except (CommandFailed, OSError):
        return None
    return Path(found) if re.search(rf"\bv?{re.escape(version.lstrip('v'))}\b", text) else None


def tool(name: str, progress: Progress, *, on: Engine | None = None) -> Path:
    """Raises ClusterError. The caller holds the lock of the cache."""
    match name:
        case "kind":
            return on_path("kind", pins.KIND, "version") or progress.make(kind()) / "kind"
        case "helm":
            return on_path("helm", pins.HELM, "version", "--short") or progress.make(helm()) / "helm"
        case "kubectl":
            return kubectl(on, progress)
        case "terraform" | "tofu":
            return programs.path(programs.PROGRAMS[name], progress)
    raise ClusterError(f"no tool called {name}; there are {', '.join(NAMES)}")


def kubectl(on: Engine | None, progress: Progress) -> Path:
    """The node's own: from our binary, or copied out of the node image that was pulled."""
    if node_image.hyperkube().is_built:
        return _link_to_hyperkube()
    if on and on.has_image(pins.NODE_IMAGE):
        return cache.make(_from_node_image(on)) / "kubectl"
    if on and on.is_private:
        # Its clusters run on our binary; this checkout has other sources for it than the last run.
        progress.make(node_image.hyperkube())
        return _link_to_hyperkube()
    if found := shutil.which("kubectl"):
        return Path(found)
    raise ClusterError("no kubectl on PATH: install it, or bring the cluster up first")


def _link_to_hyperkube() -> Path:
    # The binary looks at the name that it was started as.
    path = node_image.hyperkube().path / "kubectl"
    if not path.is_symlink():
        path.symlink_to("hyperkube")
    return path


def _from_node_image(on: Engine) -> Product:
    def build(folder: Path) -> None:
        container = on.output(["create", pins.NODE_IMAGE])
        try:
            on.run(["cp", f"{container}:/usr/bin/kubectl", folder / "kubectl"], log="kubectl")
        finally:
            on.run(["rm", container], log="kubectl")

    key = cache.content_key("kubectl", pins.NODE_IMAGE)
    return Product("kubectl", key, "copy kubectl out of the node image", "1 s", build)
