"""The images of this checkout: built when their inputs changed, and put where the cluster finds them.

A tag is a hash of all inputs, so an image with the right tag is the right image and is neither built
nor loaded again. It must never push anywhere but to the registry that it is told. Called by the
package's functions, which hold the lock, and by `foreign_images`.
"""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from tests.cluster import cache, debian, golang, pins, programs, tools
from tests.cluster.architecture import Architecture, ours
from tests.cluster.cache import PROJECT, Product, content_key
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError
from tests.cluster.model import Cluster, Images
from tests.cluster.progress import Progress
from tests.cluster.wheels import wheelhouse

# Not a real registry: what is missing on a node fails at once instead of being looked for.
LOCAL_PREFIX = "terrahalt.test"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
SOURCES = {"agent": ("protocol", "agent_image"), "operator": ("protocol", "operator")}
REGISTRIES = {"terraform": "registry.terraform.io", "tofu": "registry.opentofu.org"}
TEST_DOCKERFILE = PROJECT / "tests" / "images" / "Dockerfile"
GIT_SERVER_DOCKERFILE = PROJECT / "tests" / "images" / "git_server" / "Dockerfile"


def base_root(architecture: Architecture | None = None) -> Product:
    cold = "3 min" if architecture else "45 s"
    return debian.root_file_system("image", BASE_PACKAGES, cold=cold, architecture=architecture)


def time_provider() -> Product:
    module = "github.com/hashicorp/terraform-provider-time"
    return golang.installed("terraform-provider-time", module, f"v{pins.TIME_PROVIDER}", cold="45 s")


def build(
    on: Engine,
    prefix: str,
    progress: Progress,
    engines: Sequence[str],
    project: Path = PROJECT,
    *,
    servers: bool,
) -> Images:
    """No-op when all are there. `engines`: terraform, tofu or both. `project` has the sources.

    `servers`: also what tests run beside agents."""
    base = base_image(on, progress)
    base_id = on.output(["image", "inspect", "--format", "{{.Id}}", base])
    files = {name: programs.path(programs.PROGRAMS[name], progress) for name in engines}
    with tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as folder:
        # Keys are of the copy: somebody may write to the checkout while we build.
        context = Path(folder)
        copy_sources(context, project)
        images = _references(context, prefix, base_id, files, servers=servers)
        agents = {"terraform": images.agent, "tofu": images.agent_tofu}
        tests = {"terraform": images.agent_test, "tofu": images.agent_tofu_test}
        wanted = {images.operator: ["--target", "operator"]}
        wanted |= {agents[name]: ["--target", "agent", "--build-arg", f"ENGINE={name}"] for name in engines}
        missing = [tag for tag in wanted if not on.has_image(tag)]
        missing_tests = [name for name in engines if not on.has_image(tests[name])]
        servers = servers and not on.has_image(images.git_server)
        progress.expect(len(missing) + len(missing_tests) + servers)
        if missing:
            prepare(context, wheels(python_of(on, base), ours(), progress, project), files)
        for tag in missing:
            with progress.step(f"build the image {tag}", cold="40 s"):
                arguments = [*wanted[tag], "--build-arg", f"BASE_IMAGE={base}"]
                on.run(["build", *arguments, "--tag", tag, context], log="image")
        for name in missing_tests:
            with progress.step(f"build the image {tests[name]}", cold="45 s"):
                _build_agent_test(on, agents[name], REGISTRIES[name], tests[name])
        if servers:
            with progress.step(f"build the image {images.git_server}", cold="40 s"):
                _build_git_server(on, agents[engines[0]], base, images.git_server)
    return images


def _references(context: Path, prefix: str, base_id: str, files: Mapping[str, Path], *, servers: bool) -> Images:
    common = content_key(base_id, context / "Dockerfile", context / "images", context / "requirements")
    operator, agent = (
        content_key(common, *(context / folder / "src" for folder in SOURCES[target]))
        for target in ("operator", "agent")
    )
    references = {"operator": f"{prefix}/operator:{operator}"}
    for name, file in files.items():
        repository = "agent" if name == "terraform" else f"agent-{name}"
        own = content_key(agent, file)
        test = content_key(own, TEST_DOCKERFILE, time_provider().key)
        field = repository.replace("-", "_")
        references |= {field: f"{prefix}/{repository}:{own}", f"{field}_test": f"{prefix}/{repository}-test:{test}"}
    if servers:
        key = content_key(agent, next(iter(files.values())), GIT_SERVER_DOCKERFILE)
        references["git_server"] = f"{prefix}/git-server:{key}"
    return Images(**references)


def base_image(on: Engine, progress: Progress) -> str:
    own = f"{LOCAL_PREFIX}/base:{base_root().key}"
    for reference in (pins.PYTHON_IMAGE, own):
        if on.has_image(reference):
            return reference
    with progress.step("pull the base image", cold="20 s"):
        if on.try_to_pull(pins.PYTHON_IMAGE, log="pull"):
            return pins.PYTHON_IMAGE
    root = progress.make(base_root()) / "root"
    with tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as folder:
        archive = Path(folder) / "base.tar"
        on.run_host(["tar", "-C", root, "-cf", archive, "."], log="image-base")
        on.run(["import", archive, own], log="image-base")
    return own


def python_of(on: Engine, base: str) -> tuple[int, int]:
    ask = "import sys; print(tuple(sys.version_info[:2]))"
    answer = on.output(["run", "--rm", "--network=none", base, "python3", "-c", ask])
    major, minor = ast.literal_eval(answer)
    return major, minor


def wheels(python: tuple[int, int], architecture: Architecture, progress: Progress, project: Path = PROJECT) -> Path:
    files = [project / "requirements" / f"{name}.txt" for name in sorted(SOURCES)]
    return progress.make(wheelhouse(files, python, architecture))


def prepare(context: Path, wheels: Path, engines: Mapping[str, Path]) -> None:
    """What a build would fetch otherwise: `engines` are their programs by name."""
    _copy_tree(wheels, context / "prepared" / "wheels")
    for name, file in engines.items():
        shutil.copyfile(file, context / "prepared" / name)


def copy_sources(context: Path, project: Path = PROJECT) -> None:
    """Only what the Dockerfile names."""
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copyfile(project / name, context / name)
    folders = {f"{name}/src" for names in SOURCES.values() for name in names}
    for folder in sorted({"images", "requirements", *folders}):
        _copy_tree(project / folder, context / folder)


def _copy_tree(source: Path, target: Path) -> None:
    # Equal modes, whatever the umask of the checkout was.
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    shutil.copytree(source, target, ignore=unwanted, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _build_agent_test(on: Engine, agent: str, registry: str, tag: str) -> None:
    provider = cache.make(time_provider()) / "terraform-provider-time"
    arguments = [
        f"AGENT_IMAGE={agent}", f"VERSION={pins.TIME_PROVIDER}", f"REGISTRY={registry}",
        f"ARCHITECTURE={ours().debian}",
    ]  # fmt: skip
    _build_test(on, TEST_DOCKERFILE, arguments, tag, provider)


def _build_git_server(on: Engine, agent: str, base: str, tag: str) -> None:
    _build_test(on, GIT_SERVER_DOCKERFILE, [f"AGENT_IMAGE={agent}", f"BASE_IMAGE={base}"], tag)


def _build_test(on: Engine, dockerfile: Path, arguments: Sequence[str], tag: str, *files: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as folder:
        context = Path(folder)
        shutil.copyfile(dockerfile, context / "Dockerfile")
        for file in files:
            shutil.copy(file, context / file.name)
        options = [word for argument in arguments for word in ("--build-arg", argument)]
        on.run(["build", *options, "--tag", tag, context], log="image-test")


def prefix_for(cluster: Cluster) -> str:
    """Raises ClusterError when there is no way to get an image into that cluster."""
    registry = os.environ.get("TERRAHALT_REGISTRY")
    if cluster.is_kind:
        return LOCAL_PREFIX
    if not registry:
        raise ClusterError(
            f"the cluster {cluster.context} is not a kind cluster: set TERRAHALT_REGISTRY to a prefix "
            "that you may push to and its nodes pull from, like registry.example.org/team"
        )
    return registry.rstrip("/")


def deliver(cluster: Cluster, on: Engine, images: Images, progress: Progress) -> None:
    """Loads them into the nodes of a kind cluster, or pushes them. No-op for what is there."""
    references = [reference for reference in astuple(images) if reference]
    if not cluster.is_kind:
        for reference in references:
            with progress.step(f"push {reference}", cold="1 min"):
                on.run(["push", reference], log="push")
        return
    missing = sorted({ref for node in cluster.nodes for ref in _missing_on(node, on, references)})
    if not missing:
        return
    with progress.step(f"load into the cluster {cluster.name}: {', '.join(missing)}", cold="15 s"):
        kind = tools.tool("kind", progress)
        on.run_host(
            [kind, "load", "docker-image", *missing, "--name", cluster.name],
            log=f"kind-{cluster.name}",
        )


def _missing_on(node: str, on: Engine, references: Iterable[str]) -> list[str]:
    listed = on.output(["exec", node, "ctr", "--namespace=k8s.io", "images", "ls", "--quiet"])
    present = set(listed.splitlines())
    return [reference for reference in references if reference not in present]
