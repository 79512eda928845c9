"""The wheels of an image's dependencies, downloaded on the host for the Python inside the image.

A build inside the engine may not reach the package index (another network, other certificates), the
host does. Hashes are checked twice: here and when the Dockerfile installs them. It must never hand
out a wheel that the requirements don't name. Called by `images`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import commands
from tests.cluster.architecture import Architecture
from tests.cluster.cache import Product, content_key

# Debian bookworm has glibc 2.36; each name stands for that version exactly, so all have to be named.
GLIBC_MINORS = (36, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)


def wheelhouse(requirements: Sequence[Path], python: tuple[int, int], architecture: Architecture) -> Product:
    machine = architecture.kernel
    major, minor = python
    tags = [f"manylinux_2_{number}_{machine}" for number in GLIBC_MINORS]
    tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", "any"]
    target = [
        f"--python-version={major}.{minor}",
        "--implementation=cp",
        *(f"--abi={abi}" for abi in (f"cp{major}{minor}", "abi3", "none")),
        *(f"--platform={tag}" for tag in tags),
    ]

    def build(folder: Path) -> None:
        for file in requirements:
            commands.run(
                [
                    sys.executable, "-m", "pip", "download", "--disable-pip-version-check",
                    "--no-deps", "--require-hashes", "--only-binary=:all:", *target,
                    f"--dest={folder}", f"--requirement={file}",
                ],
                log="wheels",
            )  # fmt: skip

    key = content_key(*requirements, *target)
    title = f"download the Python packages of the images for Python {major}.{minor} on {machine}"
    return Product("wheels", key, title, "20 s", build)
