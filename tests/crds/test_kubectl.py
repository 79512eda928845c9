"""What `kubectl` shows of the kinds: columns, names, explanations, scale, status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from terrahalt_operator.api import AgentPool, TerraformTask
from terrahalt_operator.api.crd import KINDS, root_schema
from tests.crds.api_server import AS_TABLE, ApiServer, a_pool, a_task, published

STANDARD = ("apiVersion", "kind", "metadata")
"""What Kubernetes itself describes."""

STATUS: dict[str, Any] = {
    "phase": "Cancelled",
    "observedGeneration": 2,
    "conditions": [
        {
            "type": "Finished",
            "status": "True",
            "reason": "CancelledByUser",
            "message": "",
            "lastTransitionTime": "2025-01-02T03:04:05.000006Z",
            "observedGeneration": 2,
        }
    ],
    "message": "cancelled",
    "queue": {"position": 2, "waitingFor": "workspace network is held by network-6"},
    "agent": {"podName": "default-agent-x7k2p", "podUID": "u", "containerID": "containerd://c", "bootID": "b"},
    "runID": "01J",
    "source": {"commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904"},
    "plan": {
        "add": 3,
        "change": 0,
        "destroy": 1,
        "digest": "sha256:" + "0" * 64,
        "readyAt": "2026-01-02T03:04:05.000006Z",
        "runID": "01JPLAN",
        "image": "sha256:1mage",
        "architecture": "x86_64",
    },
    "progress": {"done": 7, "planned": 12, "current": "aws_vpc.main", "summary": "7/12"},
    "cancel": {
        "by": "User",
        "supersededBy": "network-7",
        "requestedAt": "2025-01-02T03:04:05.000001Z",
        "sentAt": "2025-01-02T03:04:05.000002Z",
        "signalledAt": "2025-01-02T03:04:05.000003Z",
        "exitedAt": "2025-01-02T03:04:05.000004Z",
        "sweptAt": "2025-01-02T03:04:05.000005Z",
        "rung": "Interrupt",
    },
    "outputs": {"secretName": "network-outputs", "count": 3, "problem": "it is there already"},
    "log": {"secretName": "terrahalt-log-01j"},
    "result": {
        "exitCode": 1,
        "reason": "CancelledByUser",
        "state": "Incomplete",
        "lock": "Held",
        "lockID": "0123",
        "lockCommand": "terraform force-unlock 0123",
        "forced": True,
        "openAddresses": ["aws_vpc.main"],
        "openAddressCount": 1,
    },
    "startedAt": "2025-01-02T03:04:04.000000Z",
    "finishedAt": "2025-01-02T03:04:05.000006Z",
}

POOL_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "agents": 6,
    "idle": 1,
    "busy": 3,
    "starting": 2,
    "queued": 9,
    "credentials": {"refresh": "2025-01-02", "requested": 4, "acknowledged": 3},
    "conditions": STATUS["conditions"],
}

TASK = a_task("seen-by-kubectl", action="Apply")
# No agent waits, so that an operator that may run in this cluster starts none for these tests.
POOL = a_pool("seen-by-kubectl", minIdle=0, maxAgents=3)


@pytest.fixture(scope="module", autouse=True)
def _objects(request: pytest.FixtureRequest) -> None:
    wanted = [item for item in request.session.items if item.path == request.path]
    if not any(item.get_closest_marker("cluster") for item in wanted):
        return
    api: ApiServer = request.getfixturevalue("api")
    for obj in (TASK, POOL):
        answer = api.create(obj, request.getfixturevalue("namespace"), for_real=True)
        assert answer.is_accepted, answer.body


def fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below
        yield from fields(below, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], path)


FIELDS = [
    (path, schema)
    for kind in KINDS
    for path, schema in fields(root_schema(kind), kind.singular)
    if path.split(".")[1] not in STANDARD
]


@pytest.mark.parametrize(("path", "schema"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_has_a_description(path: str, schema: Mapping[str, Any]) -> None:
    description = schema.get("description", "")
    assert description[-1:] == ".", f"{path}: a sentence"
    assert description[0].isupper()
    if "default" in schema and not isinstance(schema["default"], dict):
        assert f"Default {schema['default']}" in description
    if path.endswith("Seconds") and not description.startswith("Refused"):
        assert "in seconds" in description
    for bound in ("minimum", "maximum"):
        assert str(schema.get(bound, "")) in description


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.singular)
def test_kubectl_explains_every_field(api: ApiServer, kind: Any) -> None:
    expected = {path: schema["description"] for path, schema in FIELDS if path.split(".")[0] == kind.singular}
    found = dict(fields({"properties": published(api, kind.kind)}, kind.singular))
    assert expected.items() <= {path: schema.get("description", "") for path, schema in found.items()}.items()
    for part in ("spec", "status"):
        printed = api.kubectl("explain", f"{kind.singular}.{part}", "--recursive")
        names = {path.rsplit(".", 1)[1] for path in expected if path.startswith(f"{kind.singular}.{part}.")}
        assert names == {line.split("\t")[0].strip() for line in printed.splitlines() if "\t<" in line}


@pytest.mark.cluster
def test_a_task_is_a_line_that_says_what_it_does(api: ApiServer, namespace: str) -> None:
    header, row = table(api, namespace, TASK, STATUS)
    assert header == {
        "Name": 0, "Phase": 0, "Action": 0, "Workspace": 0, "Agent": 0, "Progress": 0, "Age": 0,
        "Queue": 1, "Reason": 1, "Rung": 1,
    }  # fmt: skip
    assert row[:6] == ["seen-by-kubectl", "Cancelled", "Apply", "network", "default-agent-x7k2p", "7/12"]
    assert row[7:] == [2, "CancelledByUser", "Interrupt"]


@pytest.mark.cluster
def test_a_pool_is_a_line_of_counts(api: ApiServer, namespace: str) -> None:
    header, row = table(api, namespace, POOL, POOL_STATUS)
    always = ["Name", "Engine", "Agents", "Idle", "Busy", "Starting", "Queued", "Age"]
    assert header == {**dict.fromkeys(always, 0), "Reason": 1}
    assert row[:7] == ["seen-by-kubectl", "Terraform", 6, 1, 3, 2, 9]


def table(
    api: ApiServer, namespace: str, obj: Mapping[str, Any], status: Mapping[str, Any]
) -> tuple[dict[str, int], list[Any]]:
    """The columns with their priority (1: wide only) and the line of this object with this status."""
    answer = api.patch(obj, namespace, {"status": status}, subresource="/status", accept=AS_TABLE)
    assert answer.is_accepted, answer.body
    header = {column["name"]: column["priority"] for column in answer.body["columnDefinitions"]}
    return header, answer.body["rows"][0]["cells"]


@pytest.mark.cluster
def test_kubectl_prints_the_columns_in_capitals(api: ApiServer, namespace: str) -> None:
    lines = api.kubectl("-n", namespace, "get", "tft").splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "ACTION", "WORKSPACE", "AGENT", "PROGRESS", "AGE"]
    wide = api.kubectl("-n", namespace, "get", "tft", "-o", "wide").splitlines()
    assert wide[0].split() == [*lines[0].split(), "QUEUE", "REASON", "RUNG"]


@pytest.mark.cluster
def test_both_kinds_are_in_the_category(api: ApiServer, namespace: str, tmp_path: Path) -> None:
    # With what kubectl remembers of an API server from before the CRDs were there, it knows no category.
    fresh = f"--cache-dir={tmp_path}"
    printed = api.kubectl("-n", namespace, "get", "terrahalt", "-o", "name", fresh).split()
    assert "terraformtask.terrahalt.dev/seen-by-kubectl" in printed
    assert "agentpool.terrahalt.dev/seen-by-kubectl" in printed


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("obj", "status", "model"),
    [(TASK, STATUS, TerraformTask), (POOL, POOL_STATUS, AgentPool)],
    ids=["terraformtask", "agentpool"],
)
def test_a_whole_status_is_kept_and_comes_back_through_the_models(
    api: ApiServer, namespace: str, obj: Mapping[str, Any], status: Mapping[str, Any], model: Any
) -> None:
    answer = api.patch(obj, namespace, [{"op": "add", "path": "/status", "value": status}], subresource="/status")
    assert answer.is_accepted, answer.body
    assert answer.body["status"] == status
    assert model.model_validate(answer.body).status.model_dump(mode="json") == status


@pytest.mark.parametrize(
    ("schema_path", "status"),
    [("terraformtask.status.", STATUS), ("agentpool.status.", POOL_STATUS)],
)
def test_the_whole_status_of_these_tests_is_whole(schema_path: str, status: Mapping[str, Any]) -> None:
    def paths(value: Any, path: str) -> Iterator[str]:
        match value:
            case dict():
                for name, below in value.items():
                    yield f"{path}{name}"
                    yield from paths(below, f"{path}{name}.")
            case list():
                for below in value:
                    yield from paths(below, path)

    assert set(paths(status, schema_path)) == {path for path, _ in FIELDS if path.startswith(schema_path)}


@pytest.mark.cluster
def test_a_word_that_a_later_agent_adds_can_be_written_to_the_status(api: ApiServer, namespace: str) -> None:
    status = {
        "phase": "Later",
        "cancel": {"rung": "Later"},
        "result": {"state": "Later", "lock": "Later", "reason": "Later"},
    }
    answer = api.patch(TASK, namespace, {"status": status}, subresource="/status")
    assert answer.is_accepted, answer.body


@pytest.mark.cluster
def test_the_status_is_out_of_reach_for_who_may_only_write_the_spec(api: ApiServer, namespace: str) -> None:
    answer = api.patch(TASK, namespace, {"status": {"message": "from the spec's side"}})
    assert answer.is_accepted, answer.body
    assert answer.body.get("status", {}).get("message") != "from the spec's side"


@pytest.mark.cluster
def test_a_fifty_first_address_is_refused_so_that_a_status_stays_small(api: ApiServer, namespace: str) -> None:
    def with_addresses(count: int) -> Mapping[str, Any]:
        return {"status": {"result": {"openAddresses": [f"a.b[{n}]" for n in range(count)]}}}

    assert api.patch(TASK, namespace, with_addresses(50), subresource="/status").is_accepted
    answer = api.patch(TASK, namespace, with_addresses(51), subresource="/status")
    assert answer.causes[0].field == "status.result.openAddresses"


@pytest.mark.cluster
def test_kubectl_scale_changes_how_many_agents_wait(api: ApiServer, namespace: str) -> None:
    answer = api.patch(POOL, namespace, {"spec": {"replicas": 3}}, subresource="/scale")
    assert answer.is_accepted, answer.body
    assert answer.body["spec"]["replicas"] == 3
    too_many = api.patch(POOL, namespace, {"spec": {"replicas": 4}}, subresource="/scale")
    assert "raise maxAgents or lower minIdle" in too_many.body["message"]
