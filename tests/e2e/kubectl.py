"""kubectl as a user types it. Every change that a test makes to the cluster goes through here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class KubectlFailed(AssertionError):
    """Says which command failed, and what it printed."""


@dataclass(frozen=True)
class Kubectl:
    program: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, stdin: str = "", within_s: float = 60) -> str:
        """What it prints. Raises KubectlFailed."""
        done = self.attempt(*arguments, stdin=stdin, within_s=within_s)
        if done.returncode:
            raise KubectlFailed(f"kubectl {shlex.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def attempt(self, *arguments: str, stdin: str = "", within_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            input=stdin,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def stream(self, *arguments: str) -> subprocess.Popen[str]:
        """Goes on until the caller ends it."""
        return self.stream_of([str(self.program), *arguments])

    def stream_of(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Of another program that needs the cluster's environment."""
        return subprocess.Popen(
            command,
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the tests, which need it until everything is as it was.
            start_new_session=True,
        )

    def get(self, *arguments: str) -> Json:
        found: Json = json.loads(self("get", *arguments, "--output=json"))
        return found

    def find(self, *arguments: str) -> Json | None:
        """None where there is no such object."""
        text = self("get", *arguments, "--output=json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def create(self, *objects: Json) -> list[str]:
        """Their UIDs."""
        made = self("create", "--filename=-", '--output=jsonpath={.metadata.uid}{"\\n"}', stdin=_list(objects))
        return made.split()

    def apply(self, *objects: Json) -> None:
        self("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=_list(objects))


def _list(objects: tuple[Json, ...]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
