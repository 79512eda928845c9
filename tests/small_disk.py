"""A real filesystem that a test can fill without harm: a tmpfs of its own. Needs root; skips the test without."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def a_small_disk(folder: Path, *, mebibytes: int) -> Iterator[Path]:
    """Mounts it on `folder`. Nothing of it is left afterwards."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root may mount a filesystem")
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "terrahalt-small-disk", str(folder)]
    tried = subprocess.run(mounted, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no filesystem can be mounted here: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """To the last byte, with a file called `big`, as often as there is room again."""
    with (disk / "big").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    assert os.statvfs(disk).f_bavail == 0
