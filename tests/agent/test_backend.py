"""What is known of the lock after a run, and what a person is told to type."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.adapters.backend import KubernetesBackend, LocalBackend
from terrahalt_agent.adapters.cluster_api import ApiError, ApiServer, ClusterApi, NotFoundError
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_protocol.messages import Lock, LockCondition

LEASE = "lock-tfstate-default-network-tf"
BEGUN_AT = datetime(2026, 5, 1, 12, 0, tzinfo=UTC).timestamp()
BEFORE, DURING = "2026-05-01T11:59:59.999999999Z", "2026-05-01T12:00:00.123456789Z"


class LeaseOnly(ClusterApi):
    """Answers with one Lease, or with an error."""

    def __init__(self, answer: dict[str, Any] | ApiError) -> None:
        super().__init__(ApiServer("", Path(), Path()), "team-a")
        self._answer = answer

    async def lease(self, name: str) -> dict[str, Any]:
        assert name == LEASE
        if isinstance(self._answer, ApiError):
            raise self._answer
        return self._answer


def a_lease(holder: str | None, info: object = None) -> dict[str, Any]:
    text = info if isinstance(info, str) else json.dumps(info)
    return {"metadata": {"annotations": {"app.terraform.io/lock-info": text}}, "spec": {"holderIdentity": holder}}


def a_backend(api: ClusterApi) -> KubernetesBackend:
    return KubernetesBackend(api, StateCopies(api, "team-a"), "team-a", "agent-0")


async def the_lock(answer: dict[str, Any] | ApiError) -> Lock:
    return await a_backend(LeaseOnly(answer)).lock("network", "01J", BEGUN_AT)


@pytest.mark.parametrize("answer", [NotFoundError("none"), {}, {"spec": {}}, a_lease(None), a_lease("")])
async def test_no_holder_is_a_free_lock(answer: dict[str, Any] | ApiError) -> None:
    assert await the_lock(answer) == Lock(condition=LockCondition.RELEASED)


@pytest.mark.parametrize("info", [{"Who": "01J@agent-0"}, {"Who": "nonroot@agent-0", "Created": DURING}])
async def test_our_own_lock_is_held_and_the_command_releases_just_that_one(info: dict[str, str]) -> None:
    lock = await the_lock(a_lease("id-1", {"ID": "id-1"} | info))
    assert (lock.condition, lock.id, lock.who) == (LockCondition.HELD, "id-1", info["Who"])
    begin, _, patch = lock.command.partition(" -p ")
    assert begin == f"kubectl -n team-a patch lease {LEASE} --type=json"
    assert json.loads(patch.strip("'")) == [
        {"op": "test", "path": "/spec/holderIdentity", "value": "id-1"},
        {"op": "remove", "path": "/spec/holderIdentity"},
    ]


@pytest.mark.parametrize(
    "info",
    [
        {"Who": "01JOTHER@agent-0"},
        {"Who": "nonroot@agent-0", "Created": BEFORE},
        {"Who": "nonroot@agent-0", "Created": "yesterday"},
        {"Who": "01J@agent-1", "Created": DURING},
        {"Who": "me@laptop", "Created": DURING},
    ],
)
async def test_a_lock_of_somebody_else_is_not_ours_to_release(info: object) -> None:
    lock = await the_lock(a_lease("id-2", info))
    assert (lock.condition, lock.id, lock.command) == (LockCondition.RELEASED, "id-2", "")


@pytest.mark.parametrize("info", ["", "{", "[]", "null", None, {}])
async def test_a_lock_that_does_not_say_whose_it_is_is_unknown(info: object) -> None:
    lock = await the_lock(a_lease("id-3", info))
    assert (lock.condition, lock.id) == (LockCondition.UNKNOWN, "id-3")
    assert lock.command == f"kubectl -n team-a get lease {LEASE} -o yaml"


async def test_a_lease_that_cannot_be_read_is_unknown_with_the_command_to_look() -> None:
    lock = await the_lock(ApiError("no"))
    assert (lock.condition, lock.command) == (LockCondition.UNKNOWN, f"kubectl -n team-a get lease {LEASE} -o yaml")


def test_the_state_is_named_after_the_workspace() -> None:
    assert a_backend(LeaseOnly({})).init_args("network") == [
        "-backend-config=secret_suffix=network-tf",
        "-backend-config=namespace=team-a",
        "-backend-config=in_cluster_config=true",
    ]


async def test_the_local_backend_keeps_one_file_per_workspace_whose_lock_ends_with_its_process() -> None:
    backend = LocalBackend(Path("/states"))
    assert backend.init_args("network") == ["-backend-config=path=/states/network.tfstate"]
    assert (await backend.lock("network", "01J", BEGUN_AT)).condition is LockCondition.RELEASED
