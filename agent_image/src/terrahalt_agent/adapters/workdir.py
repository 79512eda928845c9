"""The directory of one run: source, variables, environment, all made anew before `init`.

Refuses what terraform would lose a state over: a directory that can't be written. Secrets stay in memory
and in files of mode 0600 outside of the module. Called by `driver`; its errors carry the reason that
the task's status shows.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from terrahalt_agent.adapters.archive import Archives
from terrahalt_agent.adapters.backend import Backend
from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.adapters.kept_plans import PlanArchive
from terrahalt_agent.adapters.provider_cache import ProviderCache, Stopped
from terrahalt_agent.core import git_access, providers, variables
from terrahalt_agent.core.access import Access, access, authority
from terrahalt_agent.core.classify import PLAN_EXPIRED
from terrahalt_agent.core.commands import Paths, environment
from terrahalt_agent.core.source import BACKEND_OVERRIDE, CREDENTIALS_INVALID, SourceError, check_files
from terrahalt_protocol.messages import ArchiveSource, ConfigFrom, GitSource, Source, Start

ERRORED_STATE = "errored.tfstate"
_LOCK_FILE = ".terraform.lock.hcl"
_COMMIT = "commit:"
_ACCESS = "access"
_PROBE = ".terrahalt-probe"
_log = logging.getLogger(__name__)


class PreparationError(Exception):
    """The run can't begin; `reason` is CamelCase, the text is for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prepared:
    paths: Paths
    init_args: tuple[str, ...]
    commit: str = ""
    """Of a git source."""
    source: str = ""
    """What the source was: of two that are named alike no byte differs."""


@dataclass(frozen=True, slots=True)
class Environment:
    values: Mapping[str, str]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variables:
    """Terraform's input variables."""

    values: Mapping[str, Any]
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceSecret:
    """What the Secret of a source holds, as it was read."""

    values: Mapping[str, bytes]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(value.decode(errors="replace") for value in self.values.values())


class Workdir:
    def __init__(
        self,
        root: Path,
        api: ClusterApi,
        git: Git,
        container: Mapping[str, str],
        *,
        cli_config: str = "",
        cache: ProviderCache | None = None,
    ) -> None:
        """`cli_config` is the text of the engine's own configuration; empty: it gets none of ours."""
        self._root = root
        self._api = api
        self._git = git
        self._archives = Archives()
        self._container = container
        self._cli_config = cli_config
        self._cache = cache

    async def read_environment(self, start: Start) -> Environment:
        """The values of envFrom, later ones winning. Raises PreparationError."""
        values: dict[str, str] = {}
        secrets: list[str] = []
        for source in start.env_from:
            try:
                found = await self._api.values(source)
            except ApiError as error:
                raise PreparationError("EnvironmentInvalid", f"envFrom: {error}") from error
            for name, value in found.items():
                text = value.decode(errors="replace")
                if "\0" in text or "=" in name or not name:
                    continue  # no process can get it; Kubernetes passes over such keys too
                values[source.prefix + name] = text
                if source.secret is not None:
                    secrets.append(text)
        return Environment(values, tuple(secrets))

    async def read_variables(self, start: Start) -> Variables:
        """Those of variablesFrom, later ones winning, and the task's own over all. Raises PreparationError."""
        values: dict[str, Any] = {}
        secrets: list[str] = []
        for source in start.values.variables_from if start.values is not None else ():
            try:
                found = await self._api.values(source)
                values |= variables.parse(found)
            except ApiError as error:
                raise PreparationError("VariablesInvalid", f"variablesFrom: {error}") from error
            except variables.VariablesError as error:
                raise PreparationError("VariablesInvalid", f"variablesFrom: {source.name}: {error}") from error
            if source.secret is not None:
                secrets += variables.secrets(found)
        return Variables(values | start.variables, tuple(secrets))

    def environment(self, start: Start, env_from: Environment, backend: Backend) -> dict[str, str]:
        """Of a process of the run that is started now."""
        paths = self._paths(self._folder(start))
        found = providers.environment(config=paths.cli_config, cache=paths.plugins)
        env = environment(self._container, env_from.values, run_id=start.run_id, home=paths.home, providers=found)
        return {**env, **backend.environment(start.workspace)}

    async def read_source_secret(self, start: Start) -> SourceSecret:
        """Empty where the source needs none. Raises PreparationError."""
        remote = start.files_from.remote
        if remote is None or not remote.secret:
            return SourceSecret({})
        try:
            return SourceSecret(await self._api.secret(remote.secret))
        except ApiError as error:
            raise PreparationError(CREDENTIALS_INVALID, f"the source's secretRef: {error}") from error

    async def prepare(
        self,
        start: Start,
        env_from: Environment,
        backend: Backend,
        approved: PlanArchive | None = None,
        inputs: Variables | None = None,
        secret: SourceSecret | None = None,
    ) -> Prepared:
        """Raises PreparationError; what was written until then stays. `approved`: what is to be applied. `inputs`: of a
        plan; None: it is made already, and holds them. `secret`: what `read_source_secret` gave.

        Cancelled, it leaves processes of git behind, for the sweep, and starts no more.
        """
        run, source = self._folder(start), start.files_from
        module, files, commit = run / "module", dict[str, bytes](), ""
        try:
            if source.remote is None:
                files = await self._files(start)
                check_files(files)
            await asyncio.to_thread(self._make, run)
            if (git := source.repository) is not None:
                git = git if approved is None else _at_commit(git, approved)
                shown = await self._access(git, secret)
                config = await asyncio.to_thread(self._write_access, run, git, shown)
                env = self.environment(start, env_from, backend)
                fetched = await self._git.fetch(git, into=module, repository=run / "git", env=env, config=config)
                module, commit = fetched.module, fetched.commit
            elif source.archive is not None:
                shown = await self._access(source.archive, secret)
                env = self.environment(start, env_from, backend)
                with _written_to(run):
                    fetched = await self._archives.fetch(
                        source.archive, shown, into=module, file=run / "archive", env=env
                    )
                module = fetched.module
        except SourceError as error:
            raise PreparationError(error.reason, str(error)) from error
        identity = _identity(source, commit, files)
        if approved is not None and identity != approved.source:
            raise PreparationError(PLAN_EXPIRED, "the source has changed since the plan was made")
        paths = await asyncio.to_thread(self._write, run, module, files, inputs, backend)
        settings = [f"-backend-config={paths.backend}"] if backend.settings() else []
        # The last one wins.
        init_args = [*settings, *backend.init_args(start.workspace)]
        if approved is not None:
            await asyncio.to_thread(_lay_out, approved, paths)
            init_args.append("-lockfile=readonly")
        if self._cache is not None:
            await asyncio.to_thread(self._link_plugins, self._cache, paths)
        return Prepared(paths, tuple(init_args), commit, identity)

    @property
    def shares_providers(self) -> bool:
        return self._cache is not None

    async def share_providers(self, prepared: Prepared) -> None:
        """Cancelled, it stops soon, and leaves nothing half. What goes wrong is logged: no run depends on it."""
        if self._cache is None:
            return
        stop = threading.Event()
        try:
            shared = await asyncio.to_thread(self._cache.share, Path(prepared.paths.plugins), stop)
            for provider in shared:
                _log.info("provider %s is in the pool's cache now", provider)
        except Stopped:
            pass
        except OSError as error:
            _log.warning("the pool's cache of providers could not be filled: %s", error)
        finally:
            stop.set()

    @staticmethod
    def _link_plugins(cache: ProviderCache, paths: Paths) -> None:
        lock_file = Path(paths.module) / _LOCK_FILE
        try:
            locks = providers.locked(lock_file.read_text(errors="replace")) if lock_file.is_file() else {}
            cache.link(Path(paths.plugins), locks)
        except OSError as error:
            _log.warning("the pool's cache of providers could not be used: %s", error)

    def _folder(self, start: Start) -> Path:
        """A plan holds paths, and is applied by another run."""
        return self._root / (start.run_id if start.approval is None else start.task.uid)

    async def _files(self, start: Start) -> dict[str, bytes]:
        source = start.files_from
        if source.inline is not None:
            return {path: text.encode() for path, text in source.inline.items()}
        if source.config_map is None:
            raise PreparationError(
                "SourceInvalid",
                "the task names no source that this agent knows: give its pool an agent image as new as the operator",
            )
        try:
            return await self._api.config_map(source.config_map)
        except ApiError as error:
            raise PreparationError("SourceInvalid", str(error)) from error

    async def _access(self, source: GitSource | ArchiveSource, secret: SourceSecret | None) -> Access:
        """Raises SourceError."""
        ca = "" if source.authority is None else await self._authority(source.authority)
        if secret is None or not source.secret:
            return access(source.url, ca=ca)
        return access(source.url, source.secret, secret.values, ca)

    async def _authority(self, source: ConfigFrom) -> str:
        try:
            return authority(source.name, await self._api.values(source))
        except ApiError as error:
            raise SourceError(f"the source's caRef: {error}", CREDENTIALS_INVALID) from error

    def forget_access(self, start: Start) -> None:
        """What was written for the fetch of the source and of modules; nothing needs it once init is over.

        Never raises: a run may have done to these files whatever it can."""
        run = self._folder(start)
        shutil.rmtree(run / _ACCESS, ignore_errors=True)
        with suppress(OSError):
            (run / "home" / git_access.CONFIG).unlink()

    def _make(self, run: Path) -> None:
        with _written_to(run):
            for directory in (run, run / "module", run / "home", run / "logs", run / _ACCESS):
                directory.mkdir(mode=0o700)

    def _write_access(self, run: Path, source: GitSource, shown: Access) -> str:
        """Where git's configuration is; empty: none is needed."""
        folder, config = run / _ACCESS, run / "home" / git_access.CONFIG
        files = git_access.files(source.url, shown, folder=str(folder))
        with _written_to(run):
            for name, text in files.items():
                _write_private(config if name == git_access.CONFIG else folder / name, text.encode())
        return str(config) if files else ""

    def _write(
        self, run: Path, module: Path, files: Mapping[str, bytes], inputs: Variables | None, backend: Backend
    ) -> Paths:
        paths = self._paths(run, module)
        with _written_to(run):
            probe = module / _PROBE
            probe.write_bytes(b"errored.tfstate must find room here\n")
            probe.unlink()
            for path, content in files.items():
                target = module / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            (module / BACKEND_OVERRIDE).write_bytes(msgspec.json.encode(backend.override()))
            if inputs is not None:
                _write_private(Path(paths.variables), msgspec.json.encode(inputs.values))
            if settings := backend.settings():
                _write_private(Path(paths.backend), settings.encode())
            if self._cli_config:
                _write_private(Path(paths.cli_config), self._cli_config.encode())
        return paths

    def _paths(self, run: Path, module: Path | None = None) -> Paths:
        return Paths(
            module=str(module or run / "module"),
            home=str(run / "home"),
            variables=str(run / "variables.tfvars.json"),
            backend=str(run / "backend.hcl"),
            cli_config=str(run / "cli.tfrc") if self._cli_config else "",
            plugins=str(run / "plugins") if self._cache is not None else "",
            plan=str(run / "plan.tfplan"),
            logs=str(run / "logs"),
        )


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


def plan_archive(prepared: Prepared, text: str, secrets: tuple[str, ...]) -> PlanArchive:
    """What an apply of the run's plan needs; `text` is how people read it, `secrets` is what it may show of those that
    the plan was made with. Raises OSError."""
    lock_file = Path(prepared.paths.module) / _LOCK_FILE
    return PlanArchive(
        plan=Path(prepared.paths.plan).read_bytes(),
        lock_file=lock_file.read_bytes() if lock_file.exists() else None,
        source=prepared.source,
        text=text.encode(),
        secrets=secrets,
    )


def _lay_out(approved: PlanArchive, paths: Paths) -> None:
    with _written_to(Path(paths.plan).parent):
        _write_private(Path(paths.plan), approved.plan)
        if approved.lock_file is not None:
            (Path(paths.module) / _LOCK_FILE).write_bytes(approved.lock_file)


def _at_commit(source: GitSource, approved: PlanArchive) -> GitSource:
    """A branch may have moved since."""
    return msgspec.structs.replace(source, ref=approved.source.removeprefix(_COMMIT))


def _identity(source: Source, commit: str, files: Mapping[str, bytes]) -> str:
    if commit:
        return f"{_COMMIT}{commit}"
    if source.archive is not None:
        return f"archive:{source.archive.sha256}"
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    return f"files:{hashlib.sha256(msgspec.json.encode(digests, order='sorted')).hexdigest()}"


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
