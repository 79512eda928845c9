"""The typed models: what they read, what they write, and what they refuse to turn into a schema."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest

from terrahalt_operator.api import (
    AgentPool,
    CancelStatus,
    Condition,
    EnvFrom,
    TerraformTask,
    TerraformTaskSpec,
    TerraformTaskStatus,
    backend,
    providers,
    references,
    source,
    task,
)
from terrahalt_operator.api import names as api_names
from terrahalt_operator.api.crd import object_schema
from terrahalt_operator.api.schema import ApiModel, camel
from terrahalt_operator.core import model as core
from terrahalt_operator.core import names as core_names
from terrahalt_operator.core.model import CancelMode
from terrahalt_protocol.messages import Action
from tests.crds.api_server import a_pool, a_task


def test_a_task_is_read_with_the_defaults_of_its_schema() -> None:
    read = TerraformTask.model_validate(a_task(action="Destroy", cancel=True))
    assert read.spec.action is Action.DESTROY
    assert read.spec.cancel is True
    assert read.spec.cancel_mode is CancelMode.GRACEFUL
    assert (read.spec.timeout_seconds, read.spec.cancel_grace_seconds) == (3600, 300)
    assert read.spec.pool_ref.name == "default"
    assert read.spec.variables is None
    assert read.status.phase is None


def test_a_pool_is_read_with_the_defaults_of_its_schema() -> None:
    pool = AgentPool.model_validate(a_pool(minIdle=0))
    assert (pool.spec.min_idle, pool.spec.max_agents) == (0, 10)
    assert pool.spec.image is None
    assert pool.spec.termination_grace_period_seconds == 403
    assert pool.spec.service_account_name == "terrahalt-agent"


def test_what_another_version_has_let_in_can_still_be_read() -> None:
    read = TerraformTask.model_validate(
        {
            **a_task(timeoutSeconds=10**6, workspace="N" * 100, later={"field": 1}),
            "status": {"phase": "Later", "more": 1},
        }
    )
    assert read.spec.timeout_seconds == 10**6
    assert read.status.phase == "Later"


def test_a_model_does_not_change() -> None:
    read = TerraformTask.model_validate(a_task())
    with pytest.raises(ValueError, match="frozen"):
        read.spec.cancel = True


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
        object_schema(Misspelt)


def test_a_new_field_is_immutable_unless_it_is_declared_mutable() -> None:
    class Spec(ApiModel):
        """Four fields."""

        MUTABLE: ClassVar[frozenset[str] | None] = frozenset({"may_change"})
        must_be: str
        """Required."""
        has_default: int = 5
        """Never absent."""
        can_be: str | None = None
        """Optional."""
        may_change: str | None = None
        """Mutable."""

    schema = object_schema(Spec)
    assert {name: _rules(field) for name, field in schema["properties"].items()} == {
        "mustBe": ["self == oldSelf"],
        "hasDefault": ["self == oldSelf"],
        "canBe": ["self == oldSelf"],
        "mayChange": [],
    }
    assert _rules(schema) == ["has(self.canBe) == has(oldSelf.canBe)"]


def test_a_write_of_a_task_pays_for_few_of_the_fields_of_its_spec() -> None:
    """Each time a rule names a field, the API server copies the schemas of all fields beside it, at every write, those
    of the status too: 80 of them were a quarter of its CPU time."""
    spec = object_schema(TerraformTaskSpec)
    named = [name for rule in _rules(spec) for name in re.findall(r"\b(?:self|oldSelf)[.](\w+)", rule)]
    assert len(spec["properties"]) > 20
    assert len(named) <= 30, Counter(named)


def _rules(schema: dict[str, Any]) -> list[str]:
    return [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]


def test_the_core_uses_the_names_of_the_api() -> None:
    """It may not import this package, so it has them twice."""
    shared = {name for name in vars(core_names).keys() & vars(api_names).keys() if name.isupper()}
    assert shared >= {"GROUP", "VERSION", "TASK_FINALIZER", "AGENT_FINALIZER", "UID_ANNOTATION", "TASK_LABEL"}
    for name in shared:
        assert getattr(core_names, name) == getattr(api_names, name)


@pytest.mark.parametrize(
    ("of_the_core", "of_the_api"),
    [
        (core.TaskSpec, TerraformTaskSpec),
        (core.TaskStatus, TerraformTaskStatus),
        (core.QueueStatus, task.Queue),
        (core.AgentStatus, task.AgentRef),
        (core.SourceStatus, task.SourceStatus),
        (core.PlanStatus, task.PlanSummary),
        (core.ProgressStatus, task.Progress),
        (core.CancelStatus, task.CancelStatus),
        (core.ResultStatus, task.Result),
        (core.Condition, Condition),
        (core.SourceSpec, source.Source),
        (core.GitSpec, source.GitSource),
        (core.ConfigFromSpec, source.AuthorityRef),
        (core.ArchiveSpec, source.ArchiveSource),
        (core.EnvFromSpec, EnvFrom),
        (core.ProvidersSpec, providers.Providers),
        (core.FilesystemMirrorSpec, providers.FilesystemMirror),
        (core.NetworkMirrorSpec, providers.NetworkMirror),
        (core.ProviderCacheSpec, providers.ProviderCache),
        (core.OptionsSpec, task.Options),
        (core.OutputsToSpec, task.OutputsTo),
        (core.OutputsStatus, task.OutputsStatus),
        (core.LogStatus, task.LogStatus),
        (core.BackendSpec, backend.Backend),
        (core.ConfigFromSpec, backend.BackendConfigFrom),
        (core.ConfigFromSpec, references.VariablesFrom),
    ],
    ids=lambda model: model.__name__,
)
def test_the_core_reads_and_writes_no_field_that_the_schema_would_drop(
    of_the_core: type[msgspec.Struct], of_the_api: type[ApiModel]
) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(of_the_core)}
    assert fields <= {camel(name) for name in of_the_api.model_fields}


def test_the_core_reads_every_field_that_a_task_can_have_with_the_same_default() -> None:
    smallest = a_task()["spec"]
    read = msgspec.convert(smallest, core.TaskSpec)
    assert {field.encode_name for field in msgspec.structs.fields(core.TaskSpec)} == {
        camel(name) for name in TerraformTaskSpec.model_fields
    }
    expected = TerraformTaskSpec.model_validate(smallest)
    assert read.pool_ref.name == expected.pool_ref.name
    assert read.options.lock_timeout_seconds == expected.options.lock_timeout_seconds
    assert (read.no_output_timeout_seconds, read.init_timeout_seconds) == (
        expected.no_output_timeout_seconds,
        expected.init_timeout_seconds,
    )
    assert (read.backend.is_default, expected.backend) == (True, None)
    assert read.backend.type == backend.Backend().type
    assert (read.timeout_seconds, read.cancel_mode, read.cancel_grace_seconds) == (
        expected.timeout_seconds,
        expected.cancel_mode,
        expected.cancel_grace_seconds,
    )
