"""The copies of states: whole, in as many Secrets as they need, and fetched by the command that a person is told."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terrahalt_agent.adapters.cluster_api import ApiError, ClusterApi
from terrahalt_agent.adapters.kubernetes_backend import KubernetesBackend, StateFullError
from terrahalt_agent.adapters.secret_parts import PART_BYTES, TooLargeError
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.core.events import TornState
from tests.agent.builders import a_start
from tests.agent.fake_api import FakeApi, a_fake_api, asking

STATE, COPY = "tfstate-default-network-tf", "terrahalt-previous-state-network"
REMOVE = "kubectl -n team-a delete secret -l tfstate=true,tfstateSecretSuffix=network-tf,tfstateWorkspace=default"


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with a_fake_api() as api:
        yield api


@pytest.fixture
def copies(cluster: ClusterApi) -> StateCopies:
    return StateCopies(cluster, "team-a")


@pytest.fixture
async def cluster(fake: FakeApi, tmp_path: Path) -> AsyncIterator[ClusterApi]:
    async with asking(fake, tmp_path) as api:
        yield api


@pytest.fixture
def backend(cluster: ClusterApi, copies: StateCopies) -> KubernetesBackend:
    return KubernetesBackend(cluster, copies, "team-a", "agent-0", "terraform")


def a_state(random_bytes: int = 0) -> bytes:
    """Compressed, as terraform's kubernetes backend stores it; random bytes can't be made smaller."""
    return gzip.compress(json.dumps({"serial": 7, "noise": os.urandom(random_bytes).hex()}).encode())


def fetched(fake: FakeApi, command: str, folder: Path) -> bytes:
    """What the command writes, in a real shell, with a kubectl that reads what the fake API has."""
    (folder / "secrets").mkdir()
    for name in fake.names:
        (folder / "secrets" / name).write_text(fake.secret(name)["data"]["tfstate"])
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\n[ "$1 $2 $3 $4 $6" = "-n team-a get secret -o" ] && cat {folder}/secrets/$5\n')
    kubectl.chmod(0o755)
    subprocess.run(["sh", "-ec", command], cwd=folder, env={"PATH": f"{folder}:{os.environ['PATH']}"}, check=True)
    file: str = command.rpartition("> ")[2]
    return (folder / file).read_bytes()


async def test_a_state_is_kept_with_what_it_is_of_and_fetched_by_one_command(
    fake: FakeApi, copies: StateCopies, tmp_path: Path
) -> None:
    await copies.keep("copy", "errored", a_state(), a_start())
    assert fake.secret("copy")["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "terrahalt",
        "terrahalt.dev/state": "errored",
        "terrahalt.dev/workspace": "network",
    }
    assert fake.secret("copy")["metadata"]["annotations"] == {
        "terrahalt.dev/task": "network",
        "terrahalt.dev/run": "01JRUN",
    }
    command = await copies.fetch_command("copy", "errored.tfstate")
    assert json.loads(fetched(fake, command, tmp_path))["serial"] == 7


async def test_a_large_state_is_kept_in_parts_and_a_smaller_one_after_it_leaves_none_of_them(
    fake: FakeApi, copies: StateCopies, tmp_path: Path
) -> None:
    large = a_state(3 * PART_BYTES)
    await copies.keep("copy", "previous", large, a_start())
    assert len(fake.names) == -(-len(large) // PART_BYTES) >= 3
    command = await copies.fetch_command("copy", "large.tfstate")
    assert fetched(fake, command, tmp_path) == gzip.decompress(large)
    await copies.keep("copy", "previous", a_state(), a_start())
    assert fake.names == {"copy"}


async def test_what_is_too_large_is_refused_and_nothing_of_it_is_written(fake: FakeApi, copies: StateCopies) -> None:
    with pytest.raises(TooLargeError):
        await copies.keep("copy", "previous", b"x" * (33 * PART_BYTES), a_start())
    assert fake.names == set()


async def test_there_is_no_command_for_a_copy_that_is_not_there(copies: StateCopies) -> None:
    assert await copies.fetch_command("copy", "x") == ""


async def test_before_an_apply_the_state_is_copied_as_it_is_whatever_number_of_secrets_it_has(
    fake: FakeApi, backend: KubernetesBackend, tmp_path: Path
) -> None:
    state = a_state(PART_BYTES)
    fake.put_secret(STATE, tfstate=state[:700_000])
    fake.put_secret(f"{STATE}-part-1", tfstate=state[700_000:])
    await backend.keep_state(a_start())
    kept = [fake.secret(name)["data"]["tfstate"] for name in (COPY, f"{COPY}-part-1")]
    assert b"".join(base64.b64decode(part) for part in kept) == state


@pytest.mark.parametrize("content", [None, {}, {"tfstate": b"broken"}])
async def test_there_is_nothing_to_copy_where_there_is_no_state_that_can_be_read(
    fake: FakeApi, backend: KubernetesBackend, content: dict[str, bytes] | None
) -> None:
    """And a good copy stays where the state is broken by now."""
    if content is not None:
        fake.put_secret(STATE, **content)
    fake.put_secret(COPY, tfstate=b"a good one")
    await backend.keep_state(a_start())
    assert base64.b64decode(fake.secret(COPY)["data"]["tfstate"]) == b"a good one"


async def test_a_state_that_can_not_be_copied_is_an_error(fake: FakeApi, backend: KubernetesBackend) -> None:
    fake.put_secret(STATE, tfstate=a_state())
    fake.statuses = [403]
    with pytest.raises(ApiError, match=f"may not read Secret {STATE}"):
        await backend.keep_state(a_start())


async def test_a_state_that_is_whole_or_was_never_there_is_not_torn(fake: FakeApi, backend: KubernetesBackend) -> None:
    assert await backend.torn_state("network") is None
    fake.put_secret(STATE)
    assert await backend.torn_state("network") is None
    fake.put_secret(STATE, tfstate=a_state())
    assert await backend.torn_state("network") is None


@pytest.mark.parametrize(
    "broken",
    [b"", b"no gzip", a_state()[:-9], gzip.compress(b"no JSON")],
    ids=["empty", "no gzip", "cut off", "no JSON"],
)
async def test_a_torn_state_comes_with_the_copy_from_before(
    fake: FakeApi, backend: KubernetesBackend, broken: bytes, tmp_path: Path
) -> None:
    fake.put_secret(STATE, tfstate=a_state())
    await backend.keep_state(a_start())
    fake.put_secret(STATE, tfstate=broken)
    torn = await backend.torn_state("network")
    assert torn is not None
    assert torn.remove == REMOVE
    assert json.loads(fetched(fake, torn.fetch, tmp_path))["serial"] == 7
    documented = (Path(__file__).parents[2] / "docs/cancellation.md").read_text().splitlines()
    assert {torn.remove, torn.fetch} <= set(documented)


async def test_before_the_very_first_state_there_was_none(fake: FakeApi, backend: KubernetesBackend) -> None:
    fake.put_secret(STATE, tfstate=b"broken")
    assert await backend.torn_state("network") == TornState(REMOVE)


@pytest.fixture
def of_tofu(cluster: ClusterApi, copies: StateCopies) -> KubernetesBackend:
    return KubernetesBackend(cluster, copies, "team-a", "agent-0", "tofu")


async def test_a_state_that_opentofu_may_soon_not_save_is_warned_of(fake: FakeApi, of_tofu: KubernetesBackend) -> None:
    fake.put_secret(STATE, tfstate=a_state(300_000))
    assert await of_tofu.keep_state(a_start()) == ""
    fake.put_secret(STATE, tfstate=a_state(700_000))
    warning = await of_tofu.keep_state(a_start())
    assert re.match(r"compressed, the state has \d+ of the 1048576 bytes that OpenTofu can save", warning)


async def test_a_state_that_opentofu_may_not_save_after_the_next_apply_is_copied_and_the_apply_refused(
    fake: FakeApi, of_tofu: KubernetesBackend
) -> None:
    fake.put_secret(STATE, tfstate=a_state(900_000))
    with pytest.raises(StateFullError, match="give the workspace another backend"):
        await of_tofu.keep_state(a_start())
    assert COPY in fake.names


async def test_terraform_has_no_such_limit(fake: FakeApi, backend: KubernetesBackend) -> None:
    fake.put_secret(STATE, tfstate=a_state(900_000))
    assert await backend.keep_state(a_start()) == ""
