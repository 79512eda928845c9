"""Where the terraform program of the images comes from (see `program`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster import commands, pins
from tests.cluster.failure import ClusterError


def program() -> Path:
    chosen = os.environ.get("TERRAHALT_TERRAFORM") or shutil.which("terraform")
    if chosen and f"v{pins.TERRAFORM}" in commands.output([chosen, "version"]):
        return Path(chosen)
    raise ClusterError(f"no terraform {pins.TERRAFORM}")
