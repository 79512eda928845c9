"""What is known of the lock after a run, and what a person is told to type."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.adapters.backend import Ask, Backends, LocalBackend, OtherBackend
from terrahalt_agent.adapters.backend import Backend as BackendOfRun
from terrahalt_agent.adapters.cluster_api import ApiError, ApiServer, ClusterApi, NotFoundError
from terrahalt_agent.adapters.kubernetes_backend import KubernetesBackend
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.core.backend import BackendError, as_hcl
from terrahalt_protocol.messages import Backend, ConfigFrom, Lock, LockCondition, Source
from tests.agent.builders import a_start

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
    return KubernetesBackend(api, StateCopies(api, "team-a"), "team-a", "agent-0", "terraform")


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


# -- a backend that the task names


class Values(LeaseOnly):
    """Of one Secret and one ConfigMap."""

    def __init__(self) -> None:
        super().__init__({})

    async def secret(self, name: str) -> dict[str, bytes]:
        if name != "states":
            raise NotFoundError(f"Secret {name} was not found")
        return {"secret_key": b"s3cret!", "region": b"eu-west-1"}

    async def config_map(self, name: str) -> dict[str, bytes]:
        return {"bucket": b"from the map"}


async def nobody(words: Sequence[str]) -> str:
    raise AssertionError(f"terraform was asked {words}")


async def chosen(ask: Ask = nobody, local: Path | None = None, **fields: Any) -> BackendOfRun:
    backend = Backend(source=Source(inline={}), **fields) if fields else None
    backends = Backends(Values(), StateCopies(Values(), "team-a"), "team-a", "agent-0", "terraform", local)
    return await backends.of(a_start(backend=backend), ask)


async def test_without_one_a_run_has_the_backend_of_its_agent() -> None:
    assert isinstance(await chosen(), KubernetesBackend)
    assert isinstance(await chosen(local=Path("/states")), LocalBackend)
    assert isinstance(await chosen(local=Path("/states"), type="http"), OtherBackend)


async def test_settings_come_from_all_sources_the_later_one_wins_and_secrets_are_known_as_such() -> None:
    found = await chosen(
        type="s3",
        config={"bucket": "b", "key": "k", "region": "here"},
        config_from=(
            ConfigFrom(secret="states"),
            ConfigFrom(config_map="map"),
            ConfigFrom(secret="gone", optional=True),
        ),
    )
    assert found.settings() == ('bucket = "from the map"\nkey = "k"\nregion = "eu-west-1"\nsecret_key = "s3cret!"\n')
    assert set(found.secrets) == {"s3cret!", "eu-west-1"}
    assert found.override() == {"terraform": {"backend": {"s3": {}}}}
    assert found.init_args("network") == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "cloud"}, "type cloud runs terraform on other machines"),
        ({"type": "remote"}, "type remote runs terraform on other machines"),
        ({"type": "local"}, "type 'local' is not supported: use one of azurerm"),
        ({"type": 's3" {}'}, "is not supported"),
        ({"type": "s3", "config": {'a" = 1\nb': 1}}, "can't be the name of a setting"),
        ({"type": "s3", "config_from": (ConfigFrom(secret="gone"),)}, "configFrom: Secret gone was not found"),
        *(
            ({"type": "kubernetes", "config": {name: "x"}}, f"setting '{name}' of type kubernetes is the agent's own")
            for name in ("namespace", "secret_suffix", "host", "config_path", "in_cluster_config")
        ),
        ({"type": "kubernetes", "config_from": (ConfigFrom(secret="states"),)}, "is the agent's own"),
    ],
)
async def test_what_can_not_be_halted_or_would_move_the_lock_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=re.escape(words)):
        await chosen(**fields)


async def test_labels_of_the_kubernetes_backend_leave_what_is_ours_alone() -> None:
    found = await chosen(type="kubernetes", config={"labels": {"team": "a"}})
    assert isinstance(found, KubernetesBackend)
    assert found.settings() == 'labels = {"team" = "a"}\n'
    assert "-backend-config=secret_suffix=network-tf" in found.init_args("network")


@pytest.mark.parametrize(
    ("value", "hcl"),
    [
        ("plain", '"plain"'),
        ('${file("/x")} %{ if a }', r'"\u0024\u007bfile(\u0022/x\u0022)\u007d \u0025\u007b if a \u007d"'),
        ("a\nb = 1\\", r'"a\u000ab = 1\u005c"'),
        ("ü😀", r'"\u00fc\U0001f600"'),
        ([1, 2.5, True, None, {"a-b": ["c"]}], '[1, 2.5, true, null, {"a-b" = ["c"]}]'),
    ],
)  # fmt: skip
def test_a_value_in_hcl_can_not_become_anything_else(value: Any, hcl: str) -> None:
    assert as_hcl({"a": value}) == f"a = {hcl}\n"


SHOWN = """Failed to unlock state: lock ID does not match
Lock Info:
  ID:        id-1
  Path:      states/network.tfstate
  Operation: OperationTypeApply
  Who:       {who}
  Version:   1.11.4
  Created:   {created}
  Info:
"""
GO_BEFORE, GO_DURING = "2026-05-01 11:59:59.999999999 +0000 UTC", "2026-05-01 12:00:00.123456789 +0000 UTC"


async def the_lock_of(type_: str, said: str = "") -> tuple[Lock, list[Sequence[str]]]:
    asked: list[Sequence[str]] = []

    async def ask(words: Sequence[str]) -> str:
        asked.append(words)
        return said

    found = await chosen(ask, type=type_)
    return await found.lock("network", "01J", BEGUN_AT), asked


@pytest.mark.parametrize(
    ("who", "created"), [("01J@agent-0", GO_BEFORE), ("nonroot@agent-0", GO_DURING)], ids=["by name", "by time"]
)
@pytest.mark.parametrize("drawn", ["", "│ "], ids=["as terraform shows it", "as OpenTofu shows it"])
async def test_our_own_lock_in_a_bucket_is_held_with_the_command_for_just_that_one(
    who: str, created: str, drawn: str
) -> None:
    said = SHOWN.format(who=who, created=created)
    lock, asked = await the_lock_of("s3", "".join(drawn + line for line in said.splitlines(keepends=True)))
    assert asked == [["force-unlock", "-force", "-no-color", "00000000-0000-4000-8000-000000000000"]]
    assert (lock.condition, lock.id, lock.who) == (LockCondition.HELD, "id-1", who)
    assert lock.command.startswith("TF_WORKSPACE=network terraform force-unlock id-1  # in the task's source")


@pytest.mark.parametrize(
    ("who", "created"),
    [("01JOTHER@agent-0", GO_BEFORE), ("01J@agent-1", GO_DURING), ("me@laptop", GO_DURING)],
)
async def test_a_lock_of_somebody_else_in_a_bucket_is_not_ours_to_release(who: str, created: str) -> None:
    lock, _ = await the_lock_of("s3", SHOWN.format(who=who, created=created))
    assert (lock.condition, lock.id, lock.command) == (LockCondition.RELEASED, "id-1", "")


@pytest.mark.parametrize("said", ["StatusCode: 404, NoSuchKey: no such key", "state has been successfully unlocked!"])
async def test_a_bucket_without_a_lock_is_free(said: str) -> None:
    assert (await the_lock_of("s3", said))[0].condition is LockCondition.RELEASED


@pytest.mark.parametrize("said", ["", "connection refused", "Lock Info:\n  ID: 1\n"])
async def test_a_bucket_that_does_not_tell_is_unknown_with_the_command(said: str) -> None:
    lock, _ = await the_lock_of("s3", said)
    assert lock.condition is LockCondition.UNKNOWN
    assert "terraform force-unlock ID  # in the task's source, after terraform init with its backend" in lock.command


async def test_the_lock_of_a_session_has_ended_with_it() -> None:
    assert await the_lock_of("pg") == (Lock(condition=LockCondition.RELEASED), [])


@pytest.mark.parametrize("type_", ["http", "gcs", "azurerm", "consul", "oss", "cos", "oci"])
async def test_a_lock_that_can_not_be_looked_at_is_unknown_with_the_command(type_: str) -> None:
    lock, asked = await the_lock_of(type_)
    assert (lock.condition, asked) == (LockCondition.UNKNOWN, [])
    assert ("TF_WORKSPACE=network " in lock.command) == (type_ != "http")
    assert ("ignores the ID and removes anybody's lock" in lock.command) == (type_ == "http")


async def test_the_local_backend_keeps_one_file_per_workspace_whose_lock_ends_with_its_process() -> None:
    backend = LocalBackend(Path("/states"))
    assert backend.init_args("network") == ["-backend-config=path=/states/network.tfstate"]
    assert (await backend.lock("network", "01J", BEGUN_AT)).condition is LockCondition.RELEASED
