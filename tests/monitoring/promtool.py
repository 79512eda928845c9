"""promtool, by which Prometheus' own makers judge metrics and rules; compiled from the Go module proxy, once."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster import golang, pins
from tests.cluster.progress import program_of


def program() -> Path:
    package = "github.com/prometheus/prometheus/cmd/promtool"
    return program_of(golang.installed("promtool", package, pins.PROMTOOL, cold="6 min"))


def complaints(*arguments: str | Path, stdin: bytes = b"") -> str:
    """All that it says of what it does not like; empty: nothing."""
    done = subprocess.run([program(), *map(str, arguments)], input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    # A page that breaks a convention alone is said to be fine by the exit code of some versions.
    is_fine = done.returncode == 0 and (not said.strip() or "SUCCESS" in said)
    return "" if is_fine else said or f"exit code {done.returncode}"
