"""The typed models: what they read, what they write, and what they refuse to turn into a schema."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from terrahalt_operator.api import AgentPool, CancelStatus, TerraformTask
from terrahalt_operator.api.crd import immutability_rules, object_schema
from terrahalt_operator.api.schema import ApiModel, camel
from terrahalt_protocol.messages import Action, CancelMode
from tests.crds.api_server import a_pool, a_task


def test_a_task_is_read_with_the_defaults_of_its_schema() -> None:
    task = TerraformTask.model_validate(a_task(action="Destroy", cancel=True))
    assert task.spec.action is Action.DESTROY
    assert task.spec.cancel is True
    assert task.spec.cancel_mode is CancelMode.GRACEFUL
    assert (task.spec.timeout_seconds, task.spec.cancel_grace_seconds) == (3600, 300)
    assert task.spec.pool_ref.name == "default"
    assert task.spec.variables is None
    assert task.status.phase is None


def test_a_pool_is_read_with_the_defaults_of_its_schema() -> None:
    pool = AgentPool.model_validate(a_pool(minIdle=0))
    assert (pool.spec.min_idle, pool.spec.max_agents) == (0, 10)
    assert pool.spec.image is None
    assert pool.spec.service_account_name == "terrahalt-agent"


def test_what_another_version_has_let_in_can_still_be_read() -> None:
    task = TerraformTask.model_validate(
        {
            **a_task(timeoutSeconds=10**6, workspace="N" * 100, later={"field": 1}),
            "status": {"phase": "Later", "more": 1},
        }
    )
    assert task.spec.timeout_seconds == 10**6
    assert task.status.phase == "Later"


def test_a_model_does_not_change() -> None:
    task = TerraformTask.model_validate(a_task())
    with pytest.raises(ValueError, match="frozen"):
        task.spec.cancel = True


def test_times_are_written_with_six_digits_in_utc() -> None:
    status = CancelStatus(requested_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert status.model_dump(mode="json", exclude_none=True) == {"requestedAt": "2025-01-02T03:04:05.000000Z"}


@pytest.mark.parametrize(
    ("name", "spelt"),
    [("pod_uid", "podUID"), ("container_id", "containerID"), ("timeout_seconds", "timeoutSeconds"), ("id", "id")],
)
def test_names_are_spelt_as_kubernetes_spells_them(name: str, spelt: str) -> None:
    assert camel(name) == spelt


def test_a_field_of_two_types_is_refused() -> None:
    class Undecided(ApiModel):
        """Two types."""

        value: int | str
        """It."""

    with pytest.raises(TypeError, match=r"Undecided\.value: a structural schema has one type"):
        object_schema(Undecided)


def test_a_keyword_that_the_api_server_would_drop_is_refused() -> None:
    class Odd(ApiModel):
        """A set."""

        value: set[int]
        """It."""

    with pytest.raises(TypeError, match=r"Odd\.value: a structural schema has no \['uniqueItems'\]"):
        object_schema(Odd)


def test_a_mutable_field_that_does_not_exist_is_an_error() -> None:
    class Misspelt(ApiModel):
        """One field."""

        MUTABLE: ClassVar[frozenset[str] | None] = frozenset({"cancle"})
        cancel: bool = False
        """It."""

    with pytest.raises(TypeError, match=r"Misspelt\.MUTABLE names no field: \['cancle'\]"):
        immutability_rules(Misspelt)


def test_a_new_field_is_immutable_unless_it_is_declared_mutable() -> None:
    class Spec(ApiModel):
        """Three fields."""

        MUTABLE: ClassVar[frozenset[str] | None] = frozenset({"may_change"})
        must_be: str
        """Required."""
        can_be: str | None = None
        """Optional."""
        may_change: str | None = None
        """Mutable."""

    rules: Any = {rule.field_path: rule.rule for rule in immutability_rules(Spec)}
    assert rules == {
        ".mustBe": "self.mustBe == oldSelf.mustBe",
        ".canBe": "has(self.canBe) == has(oldSelf.canBe) && (!has(self.canBe) || self.canBe == oldSelf.canBe)",
    }
