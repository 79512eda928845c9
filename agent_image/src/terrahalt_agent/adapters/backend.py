"""Where terraform keeps the state of a run, and how its lock and the state are looked at beside it.

Each run has the backend that its task names, else `KubernetesBackend`, or `LocalBackend` where the agent is
outside of a cluster. All replace whatever backend the source names. What is not known of a lock is said to be
so, with what a person types. Called by `driver` (which run has it), `workdir` (files, arguments) and `aftermath`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi
from terrahalt_agent.adapters.kubernetes_backend import KubernetesBackend
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.core.backend import (
    NO_SUCH_LOCK_ID,
    BackendError,
    as_hcl,
    belongs_to,
    check,
    holder_in,
    is_json,
)
from terrahalt_agent.core.events import TornState
from terrahalt_protocol.backends import KUBERNETES, WITHOUT_WORKSPACES, unlock_command
from terrahalt_protocol.messages import Lock, LockCondition, Start

_RELEASED = Lock(condition=LockCondition.RELEASED)
_NO_LOCK = ("NoSuchKey", "has been successfully unlocked")
"""No lock is there; or the task's settings ask for none."""
WORKSPACE_VARIABLE = "TF_WORKSPACE"

Ask = Callable[[Sequence[str]], Awaitable[str]]
"""Runs terraform with these arguments in the run's directory, in bounded time; gives what it said."""


class Backend(Protocol):
    secrets: tuple[str, ...]
    """Values that must not leave the pod."""
    frees_locks: bool
    """No lock outlives a terraform that is killed: it goes with the process, or is released by `release`. Looking
    costs so little that it is done after every end."""
    grants_late: bool
    """A lock may be granted to a terraform that has died since it asked."""

    def override(self) -> dict[str, Any]:
        """The content of `source.BACKEND_OVERRIDE`."""

    def settings(self) -> str:
        """A file for `-backend-config`; empty: none is needed."""

    def init_args(self, workspace: str) -> list[str]: ...

    def environment(self, workspace: str) -> Mapping[str, str]: ...

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        """What is known of the lock now. Never raises for a cause outside. Held: it is proven to be this run's.

        `begun_at` is when the run began, in seconds since the epoch."""

    def lock_command(self, workspace: str) -> str:
        """How a person sees whether the state's lock is held; empty: none outlives its process."""

    async def release(self, workspace: str, lock_id: str) -> None:
        """Of a run of which nothing is alive; nothing happens where it is another's by now. Raises ApiError."""

    async def keep_state(self, start: Start) -> str:
        """Copies the state, so that an apply that breaks it leaves a way back; a warning, or nothing. Raises ApiError,
        TooLargeError, and StateFullError."""

    async def torn_state(self, workspace: str) -> TornState | None:
        """None: what is saved can be read, or nothing is, or nobody but terraform can tell. Raises ApiError."""


class Backends:
    """Finds the backend of each run."""

    def __init__(
        self,
        api: ClusterApi,
        copies: StateCopies,
        namespace: str,
        hostname: str,
        engine: str,
        local: Path | None = None,
    ) -> None:
        """`local`: where an agent outside of a cluster keeps what names no backend; `engine`: as a person types it."""
        self._api = api
        self._copies = copies
        self._namespace = namespace
        self._hostname = hostname
        self._engine = engine
        self._local = local

    async def of(self, start: Start, ask: Ask) -> Backend:
        """Raises BackendError."""
        if start.backend is None:
            return self._kubernetes() if self._local is None else LocalBackend(self._local)
        settings, secrets = dict(start.backend.config), list[str]()
        for source in start.backend.config_from:
            try:
                values = await self._api.values(source)
            except ApiError as error:
                raise BackendError(f"configFrom: {error}") from error
            texts = {name: value.decode(errors="replace") for name, value in values.items()}
            settings |= texts
            if source.secret is not None:
                secrets += texts.values()
        check(start.backend.type, settings)
        hcl = as_hcl(settings)
        if start.backend.type == KUBERNETES:
            return self._kubernetes(hcl, tuple(secrets))
        return OtherBackend(start.backend.type, hcl, tuple(secrets), self._hostname, self._engine, ask)

    def _kubernetes(self, settings: str = "", secrets: tuple[str, ...] = ()) -> KubernetesBackend:
        return KubernetesBackend(
            self._api, self._copies, self._namespace, self._hostname, self._engine, settings, secrets
        )


class LocalBackend:
    """One file per workspace; the kernel releases its lock with the process that held it."""

    secrets: tuple[str, ...] = ()
    frees_locks = True
    grants_late = False

    def __init__(self, states: Path) -> None:
        self._states = states

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {"local": {}}}}

    def settings(self) -> str:
        return ""

    def init_args(self, workspace: str) -> list[str]:
        return [f"-backend-config=path={self._states / workspace}.tfstate"]

    def environment(self, workspace: str) -> Mapping[str, str]:
        return {}

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        return _RELEASED

    def lock_command(self, workspace: str) -> str:
        return ""

    async def release(self, workspace: str, lock_id: str) -> None:
        """The kernel does."""

    async def keep_state(self, start: Start) -> str:
        return ""  # terraform leaves a backup beside it

    async def torn_state(self, workspace: str) -> TornState | None:
        state, backup = self._states / f"{workspace}.tfstate", self._states / f"{workspace}.tfstate.backup"
        text = state.read_bytes() if state.exists() else b""
        if is_json(text) or (not text and not backup.exists()):  # terraform makes an empty one first
            return None
        return TornState(f"rm {state}", f"cp {backup} previous.tfstate" if backup.exists() else "")


class OtherBackend:
    """One that terraform alone can reach: what it said itself is believed, so its lock is asked for only in doubt."""

    def __init__(
        self, type_: str, settings: str, secrets: tuple[str, ...], hostname: str, engine: str, ask: Ask
    ) -> None:
        self.secrets = secrets
        self.frees_locks = type_ == "pg"  # the session's, whose connection the kernel closes with its process
        self.grants_late = not self.frees_locks
        self._type = type_
        self._settings = settings
        self._hostname = hostname
        self._engine = engine
        self._ask = ask

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {self._type: {}}}}

    def settings(self) -> str:
        return self._settings

    def init_args(self, workspace: str) -> list[str]:
        return []

    def environment(self, workspace: str) -> Mapping[str, str]:
        return {} if self._type in WITHOUT_WORKSPACES else {WORKSPACE_VARIABLE: workspace}

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        if self.frees_locks:
            return _RELEASED
        if self._type == "s3":
            said = await self._ask(["force-unlock", "-force", "-no-color", NO_SUCH_LOCK_ID])
            if (holder := holder_in(said)) is not None:
                if not belongs_to(holder, run_id=run_id, hostname=self._hostname, begun_at=begun_at):
                    return Lock(condition=LockCondition.RELEASED, id=holder.id, who=holder.who)
                command = unlock_command(self._type, workspace, lock_id=holder.id, engine=self._engine)
                return Lock(condition=LockCondition.HELD, id=holder.id, who=holder.who, command=command)
            if any(words in said for words in _NO_LOCK):
                return _RELEASED
        return Lock(condition=LockCondition.UNKNOWN, command=self.lock_command(workspace))

    def lock_command(self, workspace: str) -> str:
        return "" if self.frees_locks else unlock_command(self._type, workspace, engine=self._engine)

    async def release(self, workspace: str, lock_id: str) -> None:
        """A person does, by the command."""

    async def keep_state(self, start: Start) -> str:
        return ""  # the backend's own versions are the way back: docs/backends.md

    async def torn_state(self, workspace: str) -> TornState | None:
        return None
