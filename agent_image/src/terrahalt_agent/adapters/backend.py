"""Where terraform keeps the state of a run, and how its lock is looked at afterwards.

`KubernetesBackend` is what every task gets; `LocalBackend` keeps states in a directory, for the agent
outside of a cluster. Both replace whatever backend the source names. Releases a lock only where it is
proven to be this run's; else it tells who holds it and what a person types. Called by `workdir` (files,
arguments) and `driver` (lock, state).
"""

from __future__ import annotations

import gzip
import logging
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi, NotFoundError
from terrahalt_agent.adapters.state_copies import DATA_KEY, StateCopies, part_name
from terrahalt_agent.core.events import TornState
from terrahalt_protocol import state_lock
from terrahalt_protocol.messages import Lock, LockCondition, Start
from terrahalt_protocol.state_lock import state_suffix

_log = logging.getLogger(__name__)
_RELEASED = Lock(condition=LockCondition.RELEASED)


class Backend(Protocol):
    frees_locks: bool
    """Whether a killed terraform leaves no lock that only a person can release."""

    def override(self) -> dict[str, Any]:
        """The content of `source.BACKEND_OVERRIDE`."""

    def init_args(self, workspace: str) -> list[str]: ...

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        """What is known of the lock now, with no process of the run alive. Never raises for a cause outside.

        `begun_at` is when the run began, in seconds since the epoch. Held is a lock that is proven to be this run's."""

    async def release(self, workspace: str, lock: Lock) -> Lock:
        """What is known after releasing this run's lock, with no process of it alive: as it was, where it can't be
        released. Never raises for a cause outside."""

    async def keep_state(self, start: Start) -> None:
        """Copies the state, so that an apply that breaks it leaves a way back. Raises ApiError and TooLargeError."""

    async def torn_state(self, workspace: str) -> TornState | None:
        """None: what is saved can be read, or nothing is. Raises ApiError."""


class KubernetesBackend:
    frees_locks = True

    def __init__(self, api: ClusterApi, copies: StateCopies, namespace: str, hostname: str) -> None:
        self._api = api
        self._copies = copies
        self._namespace = namespace
        self._hostname = hostname

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {"kubernetes": {}}}}

    def init_args(self, workspace: str) -> list[str]:
        return [
            f"-backend-config=secret_suffix={state_suffix(workspace)}",
            f"-backend-config=namespace={self._namespace}",
            "-backend-config=in_cluster_config=true",
        ]

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        look = state_lock.look_command(self._namespace, workspace)
        try:
            lease = await self._api.lease(state_lock.lease_name(workspace))
        except NotFoundError:
            return _RELEASED
        except ApiError:
            return Lock(condition=LockCondition.UNKNOWN, command=look)
        holder, info = state_lock.holder(lease), state_lock.info(lease)
        if not holder:
            return _RELEASED
        who = str(info.get("Who", ""))
        if not who:
            return Lock(condition=LockCondition.UNKNOWN, id=holder, command=look)
        user, _, hostname = who.rpartition("@")
        # USER names the run only where the image has no passwd entry for our uid; else, on this host, the time does.
        if hostname != self._hostname or not (user == run_id or _created_at(info) >= begun_at):
            return Lock(condition=LockCondition.RELEASED, id=holder, who=who)  # another's: nothing of ours is left
        release = state_lock.release_command(self._namespace, workspace, holder)
        return Lock(condition=LockCondition.HELD, id=holder, who=who, command=release)

    async def release(self, workspace: str, lock: Lock) -> Lock:
        try:
            await self._api.patch_lease(state_lock.lease_name(workspace), state_lock.release_patch(lock.id))
        except ApiError as error:
            _log.warning("workspace %s: the state's lock could not be released: %s", workspace, error)
            return lock
        return Lock(condition=LockCondition.RELEASED, id=lock.id, who=lock.who)

    async def keep_state(self, start: Start) -> None:
        state = await self._read(start.workspace)
        if state is not None and _is_state(state):
            await self._copies.keep(_previous_name(start.workspace), "previous", state, start)

    async def torn_state(self, workspace: str) -> TornState | None:
        state = await self._read(workspace)
        if state is None or _is_state(state):
            return None
        labels = f"tfstate=true,tfstateSecretSuffix={state_suffix(workspace)},tfstateWorkspace=default"
        fetch = await self._copies.fetch_command(_previous_name(workspace), "previous.tfstate")
        return TornState(f"kubectl -n {self._namespace} delete secret -l {labels}", fetch)

    async def _read(self, workspace: str) -> bytes | None:
        """As terraform does: compressed, and in more than one Secret where it is large. None: there is none."""
        parts = list[bytes]()
        try:
            while True:
                name = part_name(f"tfstate-default-{state_suffix(workspace)}", len(parts))
                parts.append((await self._api.secret(name))[DATA_KEY])
        except (NotFoundError, KeyError):  # terraform makes a Secret first, and fills it then
            return b"".join(parts) if parts else None


class LocalBackend:
    """One file per workspace; the kernel releases its lock with the process that held it."""

    frees_locks = True

    def __init__(self, states: Path) -> None:
        self._states = states

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {"local": {}}}}

    def init_args(self, workspace: str) -> list[str]:
        return [f"-backend-config=path={self._states / workspace}.tfstate"]

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        return _RELEASED

    async def release(self, workspace: str, lock: Lock) -> Lock:
        return lock

    async def keep_state(self, start: Start) -> None:
        """terraform leaves a backup beside it."""

    async def torn_state(self, workspace: str) -> TornState | None:
        state, backup = self._states / f"{workspace}.tfstate", self._states / f"{workspace}.tfstate.backup"
        text = state.read_bytes() if state.exists() else b""
        if _is_json(text) or (not text and not backup.exists()):  # terraform makes an empty one first
            return None
        return TornState(f"rm {state}", f"cp {backup} previous.tfstate" if backup.exists() else "")


def _previous_name(workspace: str) -> str:
    return f"terrahalt-previous-state-{workspace}"


def _is_state(compressed: bytes) -> bool:
    try:
        return _is_json(gzip.decompress(compressed))
    except (OSError, EOFError, zlib.error):
        return False


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _created_at(info: dict[str, Any]) -> float:
    """Seconds since the epoch; 0 where it does not say."""
    try:
        return datetime.fromisoformat(str(info.get("Created", ""))).timestamp()
    except ValueError:
        return 0.0
