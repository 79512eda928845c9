"""The engine before any run: that it is there, that it starts, which version it is.

Done while the agent waits for a task, so that no run has to: it also brings the engine's file into the memory of the
node. Blocks; called by `app` before there is an event loop.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from terrahalt_agent.settings import Settings, SettingsError

_WITHIN_S = 60.0
"""It takes 0.05 s; the first read of 100 MB on a busy node's slow disk may take long."""
_TOLD_CHARS = 500


@dataclass(frozen=True, slots=True)
class Engine:
    """Empty where it does not say it."""

    version: str
    platform: str
    """As it calls the machine, for example linux_amd64."""


def look_at(settings: Settings) -> Engine:
    """Raises SettingsError: better no agent than one on which every task fails."""
    program = settings.program
    if (path := shutil.which(program)) is None:
        raise SettingsError(f"{program} is not in this image: the pool's spec.image must be one for its spec.engine")
    env = {"HOME": str(settings.work), "CHECKPOINT_DISABLE": "1"}
    try:
        done = subprocess.run(
            [path, "version", "-json"],
            env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN_S, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode(errors="replace").strip()[:_TOLD_CHARS]
        raise SettingsError(f"{program} can't work in this image: exit code {error.returncode}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"{program} can't be started in this image: {error}") from error
    try:
        answer = json.loads(done.stdout)
        return Engine(str(answer["terraform_version"]), str(answer["platform"]))
    except (ValueError, KeyError, TypeError):
        return Engine("", "")


def check_mirror(path: str) -> None:
    """Raises SettingsError where a filesystem mirror has nothing."""
    try:
        found = any(not entry.name.startswith(".") and entry.name != "lost+found" for entry in Path(path).iterdir())
    except OSError as error:
        raise SettingsError(f"the filesystem mirror of the pool's providers can't be read: {error}") from error
    if not found:
        raise SettingsError(
            "the filesystem mirror of the pool's providers is empty: fill its volume with `terraform providers mirror`"
        )
