"""The kubernetes backend as the agent sees it beside terraform: Secrets with the state, and a Lease as its lock.

The only backend whose lock is released here, and only where it is proven to be this run's; the state is read
as terraform reads it. Called by `backend` (which run has it) and `aftermath`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import Any

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi, NotFoundError
from terrahalt_agent.adapters.secret_parts import part_name
from terrahalt_agent.adapters.state_copies import DATA_KEY, StateCopies
from terrahalt_agent.core.backend import Holder, belongs_to, created_at, is_json
from terrahalt_agent.core.events import TornState
from terrahalt_protocol import state_lock
from terrahalt_protocol.backends import KUBERNETES
from terrahalt_protocol.messages import Lock, LockCondition, Start
from terrahalt_protocol.state_lock import state_suffix

_RELEASED = Lock(condition=LockCondition.RELEASED)
SECRET_BYTES = 1024 * 1024
_NEARLY_FULL, _FULL = 0.7, 0.9


class StateFullError(Exception):
    """The next state may not fit where this one is. The text says what to do."""


class KubernetesBackend:
    frees_locks = True
    grants_late = True

    def __init__(
        self,
        api: ClusterApi,
        copies: StateCopies,
        namespace: str,
        hostname: str,
        engine: str,
        settings: str = "",
        secrets: tuple[str, ...] = (),
    ) -> None:
        self.secrets = secrets
        self._api = api
        self._copies = copies
        self._namespace = namespace
        self._hostname = hostname
        self._splits_states = engine != "tofu"
        self._settings = settings

    def override(self) -> dict[str, Any]:
        return {"terraform": {"backend": {KUBERNETES: {}}}}

    def settings(self) -> str:
        return self._settings

    def init_args(self, workspace: str) -> list[str]:
        return [
            f"-backend-config=secret_suffix={state_suffix(workspace)}",
            f"-backend-config=namespace={self._namespace}",
            "-backend-config=in_cluster_config=true",
        ]

    def environment(self, workspace: str) -> Mapping[str, str]:
        return {}

    async def lock(self, workspace: str, run_id: str, begun_at: float) -> Lock:
        look = self.lock_command(workspace)
        try:
            lease = await self._api.lease(state_lock.lease_name(workspace))
        except NotFoundError:
            return _RELEASED
        except ApiError:
            return Lock(condition=LockCondition.UNKNOWN, command=look)
        lock_id, info = state_lock.holder(lease), state_lock.info(lease)
        if not lock_id:
            return _RELEASED
        who = str(info.get("Who", ""))
        if not who:
            return Lock(condition=LockCondition.UNKNOWN, id=lock_id, command=look)
        holder = Holder(lock_id, who, created_at(str(info.get("Created", ""))))
        if not belongs_to(holder, run_id=run_id, hostname=self._hostname, begun_at=begun_at):
            return Lock(condition=LockCondition.RELEASED, id=lock_id, who=who)  # another's: nothing of ours is left
        release = state_lock.release_command(self._namespace, workspace, lock_id)
        return Lock(condition=LockCondition.HELD, id=lock_id, who=who, command=release)

    def lock_command(self, workspace: str) -> str:
        return state_lock.look_command(self._namespace, workspace)

    async def release(self, workspace: str, lock_id: str) -> None:
        await self._api.patch_lease(state_lock.lease_name(workspace), state_lock.release_patch(lock_id))

    async def keep_state(self, start: Start) -> str:
        state = await self._read(start.workspace)
        if state is None or not _is_state(state):
            return ""
        await self._copies.keep(_copy_name(start.workspace), "previous", state, start)
        return "" if self._splits_states else _room(len(state))

    async def torn_state(self, workspace: str) -> TornState | None:
        state = await self._read(workspace)
        if state is None or _is_state(state):
            return None
        labels = f"tfstate=true,tfstateSecretSuffix={state_suffix(workspace)},tfstateWorkspace=default"
        fetch = await self._copies.fetch_command(_copy_name(workspace), "previous.tfstate")
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


def _copy_name(workspace: str) -> str:
    return f"terrahalt-previous-state-{workspace}"


def _room(size: int) -> str:
    """OpenTofu keeps a state in one Secret: one that outgrows it in an apply is lost, but for errored.tfstate."""
    text = (
        f"compressed, the state has {size} of the {SECRET_BYTES} bytes that OpenTofu can save in a Secret: give the "
        "workspace another backend (docs/backends.md), or split it"
    )
    if size > _FULL * SECRET_BYTES:
        raise StateFullError(text)
    return text if size > _NEARLY_FULL * SECRET_BYTES else ""


def _is_state(compressed: bytes) -> bool:
    try:
        return is_json(gzip.decompress(compressed))
    except (OSError, EOFError, zlib.error):
        return False
