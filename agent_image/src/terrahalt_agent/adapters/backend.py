"""Where terraform keeps the state of a run, and how its lock is looked at afterwards.

Each run has the backend that its task names, else `KubernetesBackend`, or `LocalBackend` where the agent is
outside of a cluster. All replace whatever backend the source names. Never releases a lock: it tells who holds
it and what a person types. Called by `workdir` (files, arguments) and `driver` (lock).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi, NotFoundError
from terrahalt_agent.core.backend import (
    NO_SUCH_LOCK_ID,
    BackendError,
    Holder,
    as_hcl,
    belongs_to,
    check,
    created_at,
    holder_in,
)
from terrahalt_protocol.backends import KUBERNETES, WITHOUT_WORKSPACES, unlock_command
from terrahalt_protocol.messages import Lock, LockCondition, Start

_LOCK_INFO = "app.terraform.io/lock-info"
_RELEASED = Lock(condition=LockCondition.RELEASED)
WORKSPACE_VARIABLE = "TF_WORKSPACE"

Ask = Callable[[Sequence[str]], Awaitable[str]]
"""Runs terraform with these arguments in the run's directory, in bounded time; gives what it said."""


class Backend(Protocol):
    secrets: tuple[str, ...]
    """Values that must not leave the pod."""
    is_always_looked_at: bool
    """Else its lock is asked for only where terraform may have left it."""

    def override(self) -> dict[str, Any]:
        """The content of `source.BACKEND_OVERRIDE`."""

    def settings(self) -> str:
        """A file for `-backend-config`; empty: none is needed."""

    def init_args(self, workspace: str) -> list[str]: ...

    def environment(self, workspace: str) -> Mapping[str, str]: ...

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        """What is known of the lock now, with no process of the run alive. Never raises for a cause outside.

        `begun_at` is when the run began, in seconds since the epoch."""


class Backends:
    """Finds the backend of each run."""

    def __init__(self, api: ClusterApi, namespace: str, hostname: str, engine: str, local: Path | None = None) -> None:
        """`local`: where an agent outside of a cluster keeps what names no backend; `engine`: as a person types it."""
        self._api = api
        self._namespace = namespace
        self._hostname = hostname
        self._engine = engine
        self._local = local

    async def of(self, start: Start, ask: Ask) -> Backend:
        """Raises BackendError."""
        if start.backend is None:
            if self._local is not None:
                return LocalBackend(self._local)
            return KubernetesBackend(self._api, self._namespace, self._hostname)
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
            return KubernetesBackend(self._api, self._namespace, self._hostname, hcl, tuple(secrets))
        return OtherBackend(start.backend.type, hcl, tuple(secrets), self._hostname, self._engine, ask)


class KubernetesBackend:
    is_always_looked_at = True

    def __init__(
        self, api: ClusterApi, namespace: str, hostname: str, settings: str = "", secrets: tuple[str, ...] = ()
    ) -> None:
        self.secrets = secrets
        self._api = api
        self._namespace = namespace
        self._hostname = hostname
        self._settings = settings

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {KUBERNETES: {}}}}

    def settings(self) -> str:
        return self._settings

    def init_args(self, workspace: str) -> list[str]:
        return [
            f"-backend-config=secret_suffix={_suffix(workspace)}",
            f"-backend-config=namespace={self._namespace}",
            "-backend-config=in_cluster_config=true",
        ]

    def environment(self, workspace: str) -> Mapping[str, str]:
        return {}

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        name = f"lock-tfstate-default-{_suffix(workspace)}"
        look = f"kubectl -n {self._namespace} get lease {name} -o yaml"
        try:
            lease = await self._api.lease(name)
        except NotFoundError:
            return _RELEASED
        except ApiError:
            return Lock(condition=LockCondition.UNKNOWN, command=look)
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if not holder:
            return _RELEASED
        info = _lock_info(lease)
        who = str(info.get("Who", ""))
        if not who:
            return Lock(condition=LockCondition.UNKNOWN, id=holder, command=look)
        named = Holder(holder, who, created_at(str(info.get("Created", ""))))
        if not belongs_to(named, run_id=run_id, hostname=self._hostname, begun_at=begun_at):
            return Lock(condition=LockCondition.RELEASED, id=holder, who=who)  # another's: nothing of ours is left
        return Lock(condition=LockCondition.HELD, id=holder, who=who, command=self._release(name, holder))

    def _release(self, lease: str, holder: str) -> str:
        """Changes nothing if somebody else holds it by then."""
        path = "/spec/holderIdentity"
        patch = [{"op": "test", "path": path, "value": holder}, {"op": "remove", "path": path}]
        text = msgspec.json.encode(patch).decode()
        return f"kubectl -n {self._namespace} patch lease {lease} --type=json -p '{text}'"


class LocalBackend:
    """One file per workspace; the kernel releases its lock with the process that held it."""

    secrets: tuple[str, ...] = ()
    is_always_looked_at = True

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


class OtherBackend:
    """One that terraform alone can reach: what it said itself is believed, so its lock is asked for only in doubt."""

    is_always_looked_at = False

    def __init__(
        self, type_: str, settings: str, secrets: tuple[str, ...], hostname: str, engine: str, ask: Ask
    ) -> None:
        self.secrets = secrets
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
        if self._type == "pg":
            return _RELEASED  # the session's, whose connection the kernel has closed with its process
        if self._type == "s3":
            said = await self._ask(["force-unlock", "-force", "-no-color", NO_SUCH_LOCK_ID])
            if (holder := holder_in(said)) is not None:
                if not belongs_to(holder, run_id=run_id, hostname=self._hostname, begun_at=begun_at):
                    return Lock(condition=LockCondition.RELEASED, id=holder.id, who=holder.who)
                command = unlock_command(self._type, workspace, lock_id=holder.id, engine=self._engine)
                return Lock(condition=LockCondition.HELD, id=holder.id, who=holder.who, command=command)
            if any(words in said for words in _NO_LOCK):
                return _RELEASED
        command = unlock_command(self._type, workspace, engine=self._engine)
        return Lock(condition=LockCondition.UNKNOWN, command=command)


_NO_LOCK = ("NoSuchKey", "has been successfully unlocked")
"""No lock is there; or the task's settings ask for none."""


def _suffix(workspace: str) -> str:
    return f"{workspace}-tf"


def _lock_info(lease: dict[str, Any]) -> dict[str, Any]:
    text = ((lease.get("metadata") or {}).get("annotations") or {}).get(_LOCK_INFO) or ""
    try:
        info = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return info if isinstance(info, dict) else {}
