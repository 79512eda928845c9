"""helm as a user types it, on the release of the suite. Whatever is put there or taken away by it goes through here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELEASE = "terrahalt"


@dataclass(frozen=True)
class Helm:
    program: Path
    environment: Mapping[str, str]
    namespace: str

    def __call__(self, *arguments: str, within_s: float = 240) -> str:
        """What it prints."""
        done = self.attempt(*arguments, within_s=within_s)
        assert done.returncode == 0, f"helm {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def attempt(self, *arguments: str, stdin: str = "", within_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments, "--namespace", self.namespace],
            input=stdin,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def attempt_upgrade(self, chart: Path, values: Any, *how: str) -> subprocess.CompletedProcess[str]:
        """Or install."""
        arguments = ["upgrade", "--install", RELEASE, str(chart), "--create-namespace", "--values=-", *how]
        return self.attempt(*arguments, stdin=json.dumps(values))

    def upgrade(self, chart: Path, values: Any, *how: str) -> int:
        """The revision that is deployed by it."""
        done = self.attempt_upgrade(chart, values, *how)
        assert done.returncode == 0, done.stderr
        return self.revision()

    def revision(self) -> int:
        """The last one."""
        return int(json.loads(self("history", RELEASE, "--max=1", "--output=json"))[0]["revision"])

    def state(self) -> str:
        """Of the last one: deployed, uninstalling, ...; empty: there is none."""
        done = self.attempt("history", RELEASE, "--max=1", "--output=json")
        return "" if done.returncode else str(json.loads(done.stdout)[0]["status"])
