"""The Dockerfile is of no builder: podman and buildah make of it what Docker makes, and for arm64 all is there.

Each builds both images into a store in the cache, which keeps layers, so that only what changed is built
again. `make images-arm64` is the rest of arm64: it takes too long for every change.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import builders, cache, host_state, images, programs
from tests.cluster.architecture import ARM64, ours
from tests.cluster.builders import Builder
from tests.cluster.engine import Engine
from tests.cluster.images import SOURCES, base_image, copy_sources, prepare, python_of, wheels
from tests.cluster.progress import Progress

pytestmark = pytest.mark.cluster

# What is said without the environment that the chart sets: by then every module has been imported.
SAYS = {"agent": "TERRAHALT_POD_NAME is not set", "operator": "TERRAHALT_NAMESPACE is not set"}
# Podman and buildah leave an empty one, where they mounted theirs for each RUN. Every runtime mounts its
# own there.
MOUNTED_OVER = "etc/hosts"


@dataclass(frozen=True)
class Image:
    config: dict[str, Any]
    files: dict[str, list[Any]]
    says: str


@dataclass(frozen=True)
class Built:
    images: dict[tuple[str, str], Image]
    left_on_the_machine: list[str]


@pytest.fixture(scope="module")
def built(on: Engine) -> Built:
    if os.geteuid() != 0:
        pytest.skip("podman and buildah are run in namespaces of their own here, which takes root")
    builders.need()
    references = images()
    with cache.lock(), tempfile.TemporaryDirectory(dir=cache.folder("tmp")) as folder:
        before = host_state.snapshot()
        made = _of_docker(on, {"agent": references.agent, "operator": references.operator}, Path(folder))
        made |= _of_the_others(on, Path(folder))
        left = host_state.differences(before, host_state.snapshot())
    # The cluster's containers start programs meanwhile.
    return Built(made, [line for line in left if not line.startswith("process")])


def _of_docker(on: Engine, references: dict[str, str], folder: Path) -> dict[tuple[str, str], Image]:
    """Looked at where the others are, so that nothing differs by the way of looking."""
    builder = Builder("podman", cache.make(builders.store("docker", "", lambda _: None)))
    for reference in references.values():
        if not builder.has_image(reference):
            on.run(["save", "--output", folder / "image.tar", reference], log="builders")
            builder.load(folder / "image.tar")
    return {("docker", target): _looked_at(builder, target, reference) for target, reference in references.items()}


def _of_the_others(on: Engine, folder: Path) -> dict[tuple[str, str], Image]:
    progress = Progress()
    base = base_image(on, progress)
    base_id = on.output(["image", "inspect", "--format", "{{.Id}}", base])

    def load_base(store: Path) -> None:
        on.run(["save", "--output", folder / "base.tar", base], log="builders")
        Builder("podman", store).load(folder / "base.tar")

    context = folder / "context"
    context.mkdir()
    copy_sources(context)
    engine = programs.path(programs.TERRAFORM, progress)
    prepare(context, wheels(python_of(on, base), ours(), progress), {programs.TERRAFORM.name: engine})
    made = {}
    for program in ("podman", "buildah"):
        builder = Builder(program, progress.make(builders.store(program, base_id, load_base)))
        for target in SOURCES:
            tag = f"terrahalt.test/{target}:of-{program}"
            builder.build(context, target, base, tag)
            made[program, target] = _looked_at(builder, target, tag)
    return made


def _looked_at(builder: Builder, target: str, tag: str) -> Image:
    document = builder.config(tag)
    config = {name: document["config"].get(name) for name in ("User", "WorkingDir", "Entrypoint", "Cmd", "Env")}
    config |= {name: document[name] for name in ("os", "architecture")}
    return Image(config, builder.files(tag), builder.output(tag, config["Entrypoint"]))


@pytest.mark.parametrize("program", ["podman", "buildah"])
@pytest.mark.parametrize("target", SOURCES)
def test_the_image_is_the_one_that_docker_makes(built: Built, program: str, target: str) -> None:
    of_docker, of_the_other = built.images["docker", target], built.images[program, target]

    assert of_the_other.config == of_docker.config
    assert len(of_docker.files) > 1000
    assert _differences(of_docker.files, of_the_other.files) == []


def _differences(expected: dict[str, list[Any]], found: dict[str, list[Any]]) -> list[str]:
    paths = sorted({*expected, *found} - {MOUNTED_OVER})
    pairs = {path: (expected.get(path), found.get(path)) for path in paths}
    return [f"{path}: {one}, {other}" for path, (one, other) in pairs.items() if one != other]


@pytest.mark.parametrize("program", ["docker", "podman", "buildah"])
@pytest.mark.parametrize("target", SOURCES)
def test_what_the_image_is_for_starts_in_it(built: Built, program: str, target: str) -> None:
    assert SAYS[target] in built.images[program, target].says


def test_building_with_podman_and_buildah_leaves_nothing_on_the_machine(built: Built) -> None:
    assert built.left_on_the_machine == []


def test_every_dependency_has_a_wheel_for_arm64_whose_hash_is_pinned(on: Engine) -> None:
    # pip refuses what requirements/*.txt has no hash for.
    with cache.lock():
        progress = Progress()
        python = python_of(on, base_image(on, progress))
        of_arm64, of_this_machine = wheels(python, ARM64, progress), wheels(python, ours(), progress)

    assert _packages(of_arm64) == _packages(of_this_machine)
    assert any(file.name.endswith("aarch64.whl") for file in of_arm64.iterdir())


def _packages(folder: Path) -> set[str]:
    return {file.name.split("-")[0] for file in folder.iterdir()}
