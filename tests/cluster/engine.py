"""The Docker engine that clusters run on and images are built with.

Decides which: one that answers (DOCKER_HOST or the default socket), else the private one of
`private_engine`. It never changes the default engine's settings. Called by whoever builds, loads or
runs something in an engine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import commands, debian, private_engine
from tests.cluster.failure import ClusterError, CommandFailed
from tests.cluster.speech import say

ANSWER_WITHIN_S = 15


@dataclass(frozen=True)
class Engine:
    # None: what `docker` takes by itself from the environment and its contexts.
    host: str | None

    @property
    def is_private(self) -> bool:
        return self.host == private_engine.host()

    @property
    def environment(self) -> Mapping[str, str]:
        # The legacy builder is everywhere; the plug-in of the other one is not.
        return {"DOCKER_HOST": self.host} if self.host else {}

    def full_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        return ["docker", *(str(argument) for argument in arguments)]

    def run(self, arguments: Sequence[str | Path], *, log: str, timeout_s: float | None = None) -> None:
        commands.run(self.command(arguments), log=log, env=self.environment, timeout_s=timeout_s)

    def run_host(self, argv: Sequence[str | Path], *, log: str) -> None:
        """A program other than docker that looks for the same engine."""
        commands.run(argv, log=log, env=self.environment)

    def output(self, arguments: Sequence[str | Path], *, timeout_s: float = 120) -> str:
        return commands.output(self.command(arguments), env=self.environment, timeout_s=timeout_s)

    def has_image(self, reference: str) -> bool:
        return commands.succeeds(["docker", "image", "inspect", reference], env=self.environment)

    def answers(self) -> bool:
        return shutil.which("docker") is not None and commands.succeeds(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            env=self.environment,
            timeout_s=ANSWER_WITHIN_S,
        )

    def try_to_pull(self, reference: str, *, log: str) -> bool:
        """False when it can't be had; the reason is in the log."""
        try:
            self.run(["pull", reference], log=log)
        except CommandFailed as failure:
            reason = failure.tail.splitlines()[-1:] or [str(failure.status)]
            say(f"      {reference} can't be pulled: {reason[0].strip()}")
            return False
        return True


def running() -> Engine | None:
    """The engine that answers now, if any."""
    if private_engine.is_running():
        return Engine(private_engine.host())
    engine = Engine(None)
    return engine if engine.answers() else None


def needs_start() -> bool:
    return running() is None


def start() -> Engine:
    """The one that answers, or the private one after starting it. Raises ClusterError."""
    engine = running()
    if engine:
        return engine
    tried = os.environ.get("DOCKER_HOST", "the default socket")
    if not debian.can_install():
        raise ClusterError(
            f"no Docker engine answers at {tried}: start Docker (or set DOCKER_HOST, or "
            "TERRAHALT_KUBECONFIG for a cluster of your own); as root on a Debian-like Linux a "
            "private engine is started instead"
        )
    say(f"      no Docker engine answers at {tried}: a private one is started, which")
    say("      `make cluster-down` stops again; it is seen by nobody who isn't told its socket")
    private_engine.start()
    return Engine(private_engine.host())
