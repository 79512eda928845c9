"""Golden values. Two releases that disagree on one of them would let two runs work on one state."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_operator.api import names as api_names
from terrahalt_operator.core import identity, names
from terrahalt_operator.core.model import BackendSpec, ConfigFromSpec, Reference
from terrahalt_protocol import state_lock

NAMES = st.text(string.ascii_lowercase + string.digits + "-.", min_size=1, max_size=253)
SECRET = ConfigFromSpec(secret_ref=Reference(name="states"))
WORKSPACES = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=60)


def test_the_state_of_a_workspace() -> None:
    assert state_lock.state_suffix("network") == "network-tf"
    assert state_lock.state_suffix("v-2") == "v-2-tf"
    assert identity.state_identity("team-a", "network") == "kubernetes/team-a/network-tf"
    assert state_lock.lease_name("network") == "lock-tfstate-default-network-tf"


def test_the_claim_of_a_workspace() -> None:
    # printf %s kubernetes/team-a/network-tf | sha256sum
    assert identity.claim_name("team-a", "network") == GOLDEN_NETWORK
    assert identity.claim_name("team-b", "network") == GOLDEN_OTHER


GOLDEN_NETWORK = "run-4be1565fa24af3f263457316e18f22113c61d5ef2b1ee3557cd49144ab4f4381"
GOLDEN_OTHER = "run-a72d9e86919d2d047acc8113c3b876bec8a5109665e398e948c165c511528e1e"


@given(NAMES, WORKSPACES, NAMES, WORKSPACES)
def test_two_states_share_a_claim_only_if_they_are_one(n1: str, w1: str, n2: str, w2: str) -> None:
    same = (n1, w1) == (n2, w2)
    assert (identity.claim_name(n1, w1) == identity.claim_name(n2, w2)) == same


S3 = BackendSpec(type="s3", config={"bucket": "states", "key": "a"})


def test_a_bucket_is_one_state_from_every_namespace_and_in_any_order_of_its_settings() -> None:
    # printf %s '{"bucket":"states","key":"a"}' | sha256sum
    digest = "5eb26b237f2ca3890d7672163beeccfa9df51d7ad051b75dc0c6442a2f747e27"
    assert identity.state_identity("team-a", "network", S3) == f"s3/network/{digest}"
    other_order = BackendSpec(type="s3", config={"key": "a", "bucket": "states"}, config_from=(SECRET,))
    assert identity.claim_name("team-b", "network", other_order) == identity.claim_name("team-a", "network", S3)


@pytest.mark.parametrize(
    ("workspace", "backend"),
    [
        ("other", S3),
        ("network", BackendSpec(type="s3", config={"bucket": "states", "key": "b"})),
        ("network", BackendSpec(type="gcs", config={"bucket": "states", "key": "a"})),
        ("network", BackendSpec()),
    ],
)
def test_another_workspace_setting_or_backend_is_another_state(workspace: str, backend: BackendSpec) -> None:
    assert identity.claim_name("team-a", workspace, backend) != identity.claim_name("team-a", "network", S3)


def test_what_is_only_in_secrets_is_shared_within_a_namespace_alone() -> None:
    hidden = BackendSpec(type="pg", config_from=(SECRET,))
    assert identity.claim_name("team-a", "network", hidden) == identity.claim_name("team-a", "network", hidden)
    assert identity.claim_name("team-a", "network", hidden) != identity.claim_name("team-b", "network", hidden)
    assert identity.claim_name("team-a", "network", hidden) != identity.claim_name("team-a", "other", hidden)


def test_an_http_backend_is_the_state_whatever_the_workspace_is_called() -> None:
    http = BackendSpec(type="http", config={"address": "http://states.example.com/network"})
    assert identity.claim_name("team-a", "network", http) == identity.claim_name("team-b", "other", http)
    hidden = BackendSpec(type="http", config_from=(SECRET,))
    assert identity.claim_name("team-a", "network", hidden) != identity.claim_name("team-a", "other", hidden)


def test_labels_do_not_move_the_state_of_the_kubernetes_backend() -> None:
    labelled = BackendSpec(config={"labels": {"team": "a"}})
    assert identity.claim_name("team-a", "network", labelled) == GOLDEN_NETWORK


@given(NAMES, WORKSPACES)
def test_a_claims_name_is_a_name(namespace: str, workspace: str) -> None:
    assert len(identity.claim_name(namespace, workspace)) == 68


def test_the_names_that_stand_in_the_cluster() -> None:
    assert (names.TASK_FINALIZER, names.AGENT_FINALIZER) == ("terrahalt.dev/task", "terrahalt.dev/agent")
    assert (names.POOL_FINALIZER, names.SINCE_ANNOTATION) == ("terrahalt.dev/pool", "terrahalt.dev/since")
    assert (names.UID_ANNOTATION, names.EPOCH_ANNOTATION) == ("terrahalt.dev/uid", "terrahalt.dev/epoch")
    assert names.CLAIM_LABEL == "app.kubernetes.io/name=terrahalt-claim"
    assert (names.POOL_LABEL, names.TASK_LABEL) == ("terrahalt.dev/pool", "terrahalt.dev/task")
    assert (names.RUN_LABEL, names.LAST_TASK_LABEL) == ("terrahalt.dev/run", "terrahalt.dev/last-task")
    assert (names.AGENT_CONTAINER, names.TOKEN_AUDIENCE) == ("agent", "terrahalt.dev/agent")
    assert (names.LEADER_LEASE, names.TRUST_SECRET) == ("terrahalt-operator", "terrahalt-trust")


def test_the_api_and_the_core_use_the_same_names() -> None:
    shared = set(vars(names)) & set(vars(api_names))
    differing = {name for name in shared if name.isupper() and getattr(names, name) != getattr(api_names, name)}
    assert differing == set()


# ---- labels


def test_a_name_that_fits_is_its_own_label() -> None:
    assert identity.label_value("network-1") == "network-1"
    assert identity.label_value("n" * 63) == "n" * 63


def test_a_longer_one_is_cut_and_told_apart() -> None:
    assert identity.label_value("n" * 64) == "n" * 52 + "-ce068a195a"
    assert identity.label_value("n" * 64) != identity.label_value("n" * 65)


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True))
def test_every_name_gives_a_valid_label(name: str) -> None:
    value = identity.label_value(name)
    assert 1 <= len(value) <= 63
    assert value[0].isalnum()
    assert value[-1].isalnum()
    assert set(value) <= set(string.ascii_lowercase + string.digits + "-.")
