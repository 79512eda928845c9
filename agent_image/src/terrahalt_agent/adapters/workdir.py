"""The directory of one run: source, variables, environment, all made anew before `init`.

Refuses what terraform would lose a state over: a directory that can't be written. Secrets stay in memory
and in files of mode 0600 outside of the module. Called by `driver`; its errors carry the reason that
the task's status shows.
"""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from terrahalt_agent.adapters.backend import Backend
from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi, NotFoundError
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.core.commands import Paths, environment
from terrahalt_agent.core.source import BACKEND_OVERRIDE, SourceError, check_files
from terrahalt_protocol.messages import EnvFrom, Start

ERRORED_STATE = "errored.tfstate"
_PROBE = ".terrahalt-probe"


class PreparationError(Exception):
    """The run can't begin; `reason` is CamelCase, the text is for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prepared:
    paths: Paths
    env: Mapping[str, str]
    init_args: tuple[str, ...]
    commit: str = ""
    """Of a git source."""


@dataclass(frozen=True, slots=True)
class Environment:
    values: Mapping[str, str]
    secrets: tuple[str, ...]


class Workdir:
    def __init__(self, root: Path, api: ClusterApi, backend: Backend, git: Git, container: Mapping[str, str]) -> None:
        self._root = root
        self._api = api
        self._backend = backend
        self._git = git
        self._container = container

    async def read_environment(self, start: Start) -> Environment:
        """The values of envFrom, later ones winning. Raises PreparationError."""
        values: dict[str, str] = {}
        secrets: list[str] = []
        for source in start.env_from:
            for name, value in (await self._env_source(source)).items():
                text = value.decode(errors="replace")
                if "\0" in text or "=" in name or not name:
                    continue  # no process can get it; Kubernetes passes over such keys too
                values[source.prefix + name] = text
                if source.secret is not None:
                    secrets.append(text)
        return Environment(values, tuple(secrets))

    async def prepare(self, start: Start, env_from: Environment) -> Prepared:
        """Raises PreparationError; what was written until then stays.

        Cancelled, it leaves processes of git behind, for the sweep, and starts no more.
        """
        run, source = self._root / start.run_id, start.source
        env = environment(self._container, env_from.values, run_id=start.run_id, home=str(run / "home"))
        module, files, commit = run / "module", dict[str, bytes](), ""
        try:
            if source.git is None:
                files = await self._files(start)
                check_files(files)
            await asyncio.to_thread(self._make, run)
            if source.git is not None:
                fetched = await self._git.fetch(source.git, into=module, repository=run / "git", env=env)
                module, commit = fetched.module, fetched.commit
        except SourceError as error:
            raise PreparationError("SourceInvalid", str(error)) from error
        paths = await asyncio.to_thread(self._write, start, run, module, files)
        return Prepared(paths, env, tuple(self._backend.init_args(start.workspace)), commit)

    async def _env_source(self, source: EnvFrom) -> dict[str, bytes]:
        try:
            if source.secret is not None:
                return await self._api.secret(source.secret)
            return await self._api.config_map(source.config_map or "")
        except NotFoundError as error:
            if source.optional:
                return {}
            raise PreparationError("EnvironmentInvalid", f"envFrom: {error}") from error
        except ApiError as error:
            raise PreparationError("EnvironmentInvalid", f"envFrom: {error}") from error

    async def _files(self, start: Start) -> dict[str, bytes]:
        if start.source.inline is not None:
            return {path: text.encode() for path, text in start.source.inline.items()}
        if start.source.config_map is None:
            raise PreparationError(
                "SourceInvalid",
                "the task names no source that this agent knows: give its pool an agent image as new as the operator",
            )
        try:
            return await self._api.config_map(start.source.config_map)
        except ApiError as error:
            raise PreparationError("SourceInvalid", str(error)) from error

    def _make(self, run: Path) -> None:
        with _written_to(run):
            for directory in (run, run / "module", run / "home", run / "logs"):
                directory.mkdir(mode=0o700)

    def _write(self, start: Start, run: Path, module: Path, files: Mapping[str, bytes]) -> Paths:
        paths = Paths(
            module=str(module),
            home=str(run / "home"),
            variables=str(run / "variables.tfvars.json"),
            plan=str(run / "plan.tfplan"),
            logs=str(run / "logs"),
        )
        with _written_to(run):
            probe = module / _PROBE
            probe.write_bytes(b"errored.tfstate must find room here\n")
            probe.unlink()
            for path, content in files.items():
                target = module / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            (module / BACKEND_OVERRIDE).write_bytes(msgspec.json.encode(self._backend.override()))
            _write_private(Path(paths.variables), msgspec.json.encode(start.variables))
        return paths


@contextmanager
def _written_to(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PreparationError(
            "WorkdirNotWritable",
            f"{error.filename or run}: {error.strerror or error}; nothing is started where its state could "
            "not be saved: give the agent a writable volume there",
        ) from error


def errored_state(paths: Paths) -> str | None:
    """Where terraform left what it could not save."""
    path = Path(paths.module) / ERRORED_STATE
    return str(path) if path.exists() else None


def compressed(path: str) -> bytes:
    return gzip.compress(Path(path).read_bytes())


def _write_private(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
