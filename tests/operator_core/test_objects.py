"""JSON of the API to the core's values and back, from objects as a real API server gives them."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrahalt_operator.adapters import objects
from terrahalt_operator.core import names, pod, status
from terrahalt_operator.core.identity import claim_name
from terrahalt_operator.core.model import (
    Agent,
    AgentStatus,
    ApprovalMode,
    CancelMode,
    CancelStatus,
    Claim,
    Condition,
    ConfigFromSpec,
    DrainPolicy,
    Ended,
    EnvFromSpec,
    OptionsSpec,
    OutputsToSpec,
    ProviderCacheSpec,
    ProvidersSpec,
    Reference,
    SourceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from terrahalt_protocol import providers
from terrahalt_protocol.messages import Action
from terrahalt_protocol.providers import NetworkMirror
from tests.operator_core import builders as b
from tests.operator_core.merge import apply_merge_patch
from tests.operator_core.strategies import statuses

Json = dict[str, Any]

TASK: Json = {
    "apiVersion": "terrahalt.dev/v1alpha1",
    "kind": "TerraformTask",
    "metadata": {
        "name": "network-x7k2p",
        "generateName": "network-",
        "namespace": "team-a",
        "uid": "0b7f3a52-6a0e-4c0e-9d0b-1d1c8f3d9a11",
        "resourceVersion": "4711",
        "generation": 2,
        "creationTimestamp": "2025-06-15T15:05:40Z",
        "finalizers": ["example.com/audit", "terrahalt.dev/task"],
        "annotations": {
            "terrahalt.dev/uid": "0b7f3a52-6a0e-4c0e-9d0b-1d1c8f3d9a11",
            "terrahalt.dev/arrived": "4700",
            "note": "hands off",
        },
        "managedFields": [{"manager": "kubectl", "operation": "Update"}],
    },
    "spec": {
        "action": "Destroy",
        "workspace": "network",
        "source": {"configMapRef": {"name": "network-tf"}},
        "variables": {"region": "eu-west-1", "zones": ["a", {"b": None}]},
        "variablesFrom": [{"secretRef": {"name": "net"}}],
        "envFrom": [
            {"secretRef": {"name": "aws", "optional": True}, "prefix": "TF_VAR_"},
            {"configMapRef": {"name": "proxy"}},
        ],
        "poolRef": {"name": "fast"},
        "options": {"lockTimeoutSeconds": 5},
        "timeoutSeconds": 60,
        "noOutputTimeoutSeconds": 50,
        "initTimeoutSeconds": 40,
        "cancel": True,
        "cancelMode": "Force",
        "cancelGraceSeconds": 20,
        "outputsTo": {"secretName": "network-outputs", "includeSensitive": True},
        "aFieldOfALaterVersion": {"x": 1},
    },
    "status": {
        "phase": "Cancelling",
        "observedGeneration": 1,
        "runID": "01RUN",
        "agent": {"podName": "fast-agent-1", "podUID": "p", "containerID": "containerd://c", "bootID": "boot"},
        "cancel": {"by": "User", "requestedAt": "2025-06-15T15:06:40.000000Z", "rung": "Interrupt"},
        "aFieldOfALaterVersion": "x",
    },
}


def changed(obj: Json, path: str, value: Any) -> Json:
    """A copy with another value at `a.b.c`; None takes it away."""
    new = copy.deepcopy(obj)
    *parents, last = path.split(".")
    part = new
    for name in parents:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return new


def test_what_two_tasks_say_alike_is_in_memory_once() -> None:
    condition: Json = {
        "type": "Ready",
        "status": "False",
        "reason": "Queued",
        "message": "waiting for an agent of pool fast",
    }
    condition |= {"lastTransitionTime": "2025-06-15T15:06:40.000000Z", "observedGeneration": 2}
    obj = changed(TASK, "status.conditions", [condition, condition | {"type": "Finished"}])
    first, second = (objects.task(msgspec.json.decode(msgspec.json.encode(obj))).status for _ in range(2))
    for other in (first.conditions[1], *second.conditions):
        assert other.message is first.conditions[0].message
        assert other.last_transition_time is first.conditions[0].last_transition_time
    assert first.agent is not None
    assert second.agent is not None
    assert first.agent.container_id is second.agent.container_id


# ---- tasks


def test_a_task_is_read_whole() -> None:
    uid = "0b7f3a52-6a0e-4c0e-9d0b-1d1c8f3d9a11"
    assert objects.task(TASK) == Task(
        namespace="team-a",
        name="network-x7k2p",
        uid=uid,
        generation=2,
        resource_version="4711",
        created_at=1_750_000_000.0 - 60,
        is_deleting=False,
        has_finalizer=True,
        stamp=uid,
        arrived=4700,
        spec=TaskSpec(
            action=Action.DESTROY,
            workspace="network",
            source=SourceSpec(config_map_ref=Reference(name="network-tf")),
            variables={"region": "eu-west-1", "zones": ["a", {"b": None}]},
            variables_from=(ConfigFromSpec(secret_ref=Reference(name="net")),),
            env_from=(
                EnvFromSpec(secret_ref=Reference(name="aws", optional=True), prefix="TF_VAR_"),
                EnvFromSpec(config_map_ref=Reference(name="proxy")),
            ),
            pool_ref=Reference(name="fast"),
            options=OptionsSpec(lock_timeout_seconds=5),
            timeout_seconds=60,
            no_output_timeout_seconds=50,
            init_timeout_seconds=40,
            cancel=True,
            cancel_mode=CancelMode.FORCE,
            cancel_grace_seconds=20,
            outputs_to=OutputsToSpec(secret_name="network-outputs", include_sensitive=True),
        ),
        status=TaskStatus(
            phase="Cancelling",
            observed_generation=1,
            run_id="01RUN",
            agent=AgentStatus(pod_name="fast-agent-1", pod_uid="p", container_id="containerd://c", boot_id="boot"),
            cancel=CancelStatus(by="User", requested_at="2025-06-15T15:06:40.000000Z", rung="Interrupt"),
        ),
    )


def test_a_new_task_has_the_defaults_of_the_schema() -> None:
    metadata = {k: v for k, v in TASK["metadata"].items() if k not in ("finalizers", "annotations", "generation")}
    spec = {"action": "Apply", "workspace": "network", "source": {"inline": {"main.tf": ""}}}
    task = objects.task({"metadata": metadata, "spec": spec})
    assert task.spec == b.a_spec()
    assert (task.stamp, task.has_finalizer, task.generation, task.status) == (None, False, 1, TaskStatus())


@pytest.mark.parametrize(
    ("annotations", "arrived"),
    [
        ({"terrahalt.dev/arrived": "1"}, 4711),  # as its creator has it: nobody jumps the queue
        ({"terrahalt.dev/uid": "of-another", "terrahalt.dev/arrived": "1"}, 4711),
        ({"terrahalt.dev/uid": TASK["metadata"]["uid"]}, 0),
        ({"terrahalt.dev/uid": TASK["metadata"]["uid"], "terrahalt.dev/arrived": "\u00b2"}, 0),
        ({"terrahalt.dev/uid": TASK["metadata"]["uid"], "terrahalt.dev/arrived": "9" * 5000}, 0),
    ],
)
def test_a_task_has_arrived_when_it_was_first_seen_by_whoever_stamped_it(annotations: Json, arrived: int) -> None:
    meta = {**TASK["metadata"], "annotations": annotations}
    assert objects.task({**TASK, "metadata": meta}).arrived == arrived


def test_a_deleted_task_says_so() -> None:
    assert objects.task(changed(TASK, "metadata.deletionTimestamp", "2025-06-15T15:06:40Z")).is_deleting


@pytest.mark.parametrize("path", ["spec", "spec.action", "spec.workspace", "spec.source"])
def test_a_task_that_can_not_be_read_is_named(path: str) -> None:
    with pytest.raises(ValueError, match="TerraformTask team-a/network-x7k2p"):
        objects.task(changed(TASK, path, None))


@given(statuses(is_claimed=True))
def test_a_status_comes_back_as_it_was_written(status: TaskStatus) -> None:
    stored = apply_merge_patch({"status": {}}, objects.status_patch({**TASK, "status": {}}, status))
    assert objects.task({**TASK, "status": json_of(stored["status"])}).status == status


@given(statuses(is_claimed=True), statuses(is_claimed=True))
def test_a_status_patch_turns_one_status_into_the_other_and_nothing_else(old: TaskStatus, new: TaskStatus) -> None:
    obj = {**TASK, "status": json_of(old)}
    patch = objects.status_patch(obj, new)
    assert patch.keys() == {"metadata", "status"}
    assert patch["metadata"] == {"resourceVersion": "4711"}
    assert json_of(apply_merge_patch(obj["status"], patch["status"])) == json_of(new)


def test_what_did_not_change_is_not_sent_again() -> None:
    status = b.a_terminal_status()
    conditions = tuple(
        Condition(type=kind, status="True", reason="x", message="", last_transition_time=b.at(0), observed_generation=1)
        for kind in ("Ready", "Finished")
    )
    status = msgspec.structs.replace(status, conditions=conditions)
    assert objects.status_patch({**TASK, "status": json_of(status)}, status)["status"] == {}


# ---- merge patches (RFC 7386)


def json_of(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


# Without null (a merge patch can't set it), and numbers that Python takes for each other (1, 1.0, True).
LEAVES = st.text(max_size=3) | st.integers(2, 9)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_applying_the_patch_of_two_objects_to_the_one_gives_the_other(old: Json, new: Json) -> None:
    assert apply_merge_patch(old, objects.merge_patch(old, new)) == new


@given(OBJECTS)
def test_there_is_nothing_to_patch_where_nothing_changed(obj: Json) -> None:
    assert objects.merge_patch(obj, copy.deepcopy(obj)) == {}


def test_a_patch_removes_by_null_and_says_nothing_of_what_stays() -> None:
    old = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1]}
    new = {"b": {"c": 1, "d": 3}, "e": [1, 2], "f": {}}
    assert objects.merge_patch(old, new) == {"a": None, "b": {"d": 3}, "e": [1, 2], "f": {}}


# ---- agents

POD: Json = {
    "metadata": {
        "name": "default-agent-abc",
        "namespace": "team-a",
        "uid": "pod-uid",
        "resourceVersion": "815",
        "creationTimestamp": "2025-06-15T15:06:10Z",
        "finalizers": ["terrahalt.dev/agent"],
        "labels": {
            "terrahalt.dev/pool": "default",
            "terrahalt.dev/engine": "OpenTofu",
            "terrahalt.dev/task": "network-1",
            "terrahalt.dev/run": "01RUN",
            "terrahalt.dev/last-task": "network-1",
        },
        "annotations": {"terrahalt.dev/template-hash": "0123", "terrahalt.dev/proof": "4567"},
    },
    "spec": {"terminationGracePeriodSeconds": 120},
    "status": {
        "phase": "Running",
        "podIP": "fd00::7",
        "containerStatuses": [
            {"name": "sidecar", "containerID": "containerd://side", "state": {"terminated": {"exitCode": 3}}},
            {
                "name": "agent",
                "containerID": "containerd://c0ffee",
                "imageID": "registry.example/agent@sha256:1mage",
                "state": {"running": {"startedAt": "x"}},
            },
        ],
    },
}
RUNNING = Agent(
    namespace="team-a",
    name="default-agent-abc",
    uid="pod-uid",
    pool="default",
    engine="OpenTofu",
    resource_version="815",
    template_hash="0123",
    proof="4567",
    created_at=1_750_000_000.0 - 30,
    termination_grace_s=120,
    is_deleting=False,
    deleted_at=None,
    killed_at=None,
    has_finalizer=True,
    ip="fd00::7",
    phase="Running",
    container_id="containerd://c0ffee",
    image="sha256:1mage",
    is_running=True,
    ended=None,
    waiting_reason="",
    unstarted_since=None,
    task_label="network-1",
    run_label="01RUN",
    last_task_label="network-1",
)


def with_state(state: Json, **status: Any) -> Json:
    own = {"name": "agent", "containerID": "containerd://c0ffee", "imageID": "sha256:1mage", "state": state}
    return {**POD, "status": {**POD["status"], "containerStatuses": [own], **status}}


def test_a_running_agent_is_read_whole_and_a_sidecars_end_is_not_its_own() -> None:
    assert objects.agent(POD) == RUNNING
    assert not objects.agent(POD).is_over


def test_the_end_of_the_agents_container_is_read_whole() -> None:
    terminated = {
        "containerID": "containerd://c0ffee",
        "exitCode": 137,
        "reason": "OOMKilled",
        "message": '{"report":"...","hmac":"..."}',
        "finishedAt": "2025-06-15T15:06:40Z",
    }
    agent = objects.agent(with_state({"terminated": terminated}, phase="Failed"))
    assert agent.ended == Ended(
        container_id="containerd://c0ffee",
        exit_code=137,
        reason="OOMKilled",
        message='{"report":"...","hmac":"..."}',
        finished_at=1_750_000_000.0,
    )
    assert agent.is_over
    assert not agent.is_running


LOST_SIGHT_OF: Json = {
    "terminated": {
        "exitCode": 137,
        "reason": "ContainerStatusUnknown",
        "message": "The container could not be located when the pod was terminated",
        "startedAt": None,
        "finishedAt": None,
    }
}
"""As a kubelet says it whose container runtime does not know the container for now: there is no ID in it."""
BY_COLLECTOR = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
EVICTED = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}


@pytest.mark.parametrize("status", [{"phase": "Running"}, {"phase": "Failed", "conditions": [EVICTED, BY_COLLECTOR]}])
def test_a_container_that_its_kubelet_has_lost_sight_of_has_not_ended(status: Json) -> None:
    agent = objects.agent(with_state(LOST_SIGHT_OF, **status))
    assert agent.ended is None
    assert agent.is_running
    assert not agent.is_over


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_it_has_ended_once_its_kubelet_has_ended_the_pod(phase: str) -> None:
    agent = objects.agent(with_state(LOST_SIGHT_OF, phase=phase, conditions=[EVICTED]))
    assert agent.ended is not None
    assert (agent.ended.container_id, agent.ended.reason) == ("containerd://c0ffee", "ContainerStatusUnknown")
    assert not agent.is_running


def test_a_pod_that_is_deleted_says_when_its_kubelet_kills_it() -> None:
    for grace_s, killed_at in ((30, 1_750_000_000.0 + 30), (0, None)):
        deletion = {"deletionTimestamp": "2025-06-15T15:07:10Z", "deletionGracePeriodSeconds": grace_s}
        agent = objects.agent({**POD, "metadata": {**POD["metadata"], **deletion}})
        assert (agent.is_deleting, agent.killed_at) == (True, killed_at)
        assert agent.deleted_at == (1_750_000_000.0 if killed_at else None)


def test_what_pod_gc_leaves_is_not_over() -> None:
    agent = objects.agent({**POD, "status": {**POD["status"], "phase": "Failed"}})
    assert (agent.is_over, agent.ended, agent.is_running) == (False, None, True)


def test_a_pod_that_never_had_a_container_is_over_by_its_phase() -> None:
    agent = objects.agent({**POD, "status": {"phase": "Failed", "reason": "Evicted"}})
    assert (agent.is_over, agent.ended, agent.container_id) == (True, None, "")


def test_a_new_pod_has_nothing_yet() -> None:
    agent = objects.agent({"metadata": {**POD["metadata"], "labels": None, "annotations": None}})
    assert (agent.pool, agent.ip, agent.phase, agent.container_id, agent.is_over) == ("", "", "", "", False)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ({"reason": "ContainerCreating"}, ""),
        ({"reason": "PodInitializing"}, ""),
        ({"reason": "ErrImagePull", "message": "no such image"}, "ErrImagePull: no such image"),
        ({"reason": "CreateContainerConfigError"}, "CreateContainerConfigError"),
        ({}, ""),
    ],
)
def test_an_agent_that_does_not_start_says_why(waiting: Json, expected: str) -> None:
    assert objects.agent(with_state({"waiting": waiting}, phase="Pending")).waiting_reason == expected


@pytest.mark.parametrize(
    ("sandbox", "waiting", "expected"),
    [
        ({"status": "False", "lastTransitionTime": "2025-06-15T15:06:50Z"}, {}, 1_750_000_010.0),
        ({"status": "False", "lastTransitionTime": "2025-06-15T15:06:50Z"}, {"reason": "ErrImagePull"}, None),
        ({"status": "True", "lastTransitionTime": "2025-06-15T15:06:50Z"}, {}, None),
        (None, {}, None),
    ],
    ids=["no sandbox", "a reason", "about to start", "an older kubelet"],
)
def test_a_container_that_was_made_and_lost_its_sandbox_has_not_started_since(
    sandbox: Json | None, waiting: Json, expected: float | None
) -> None:
    conditions = [{"type": "PodReadyToStartContainers", **sandbox}] if sandbox else []
    status = with_state({"waiting": waiting}, phase="Pending", conditions=conditions)
    assert objects.agent(status).unstarted_since == expected
    del status["status"]["containerStatuses"][0]["containerID"]
    assert objects.agent(status).unstarted_since is None, "it is not even made"


def test_an_agent_that_no_node_takes_says_what_the_scheduler_says() -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
    status: Json = {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}, unscheduled]}
    assert objects.agent({**POD, "status": status}).waiting_reason == "Unschedulable: 0/2 nodes"
    status["conditions"][1] = {"type": "PodScheduled", "status": "True"}
    assert objects.agent({**POD, "status": status}).waiting_reason == ""


def test_an_agent_that_waits_for_a_container_before_its_own_says_so() -> None:
    before = {"name": "proxy", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
    waiting = with_state({"waiting": {"reason": "PodInitializing"}}, initContainerStatuses=[before])
    assert objects.agent(waiting).waiting_reason == "ErrImagePull: no such image"


def test_a_pod_says_who_runs_there_and_to_autoscalers_whether_it_may_go() -> None:
    body = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor")
    to_autoscalers = {names.SAFE_TO_EVICT: "true"}
    assert to_autoscalers.items() <= body["metadata"]["annotations"].items()
    assert names.DO_NOT_DISRUPT not in body["metadata"]["annotations"]
    busy = apply_merge_patch(body, {"metadata": pod.busy_metadata(b.a_claim(), b.at(0))})["metadata"]
    assert {names.SAFE_TO_EVICT: "false", names.DO_NOT_DISRUPT: "true"}.items() <= busy["annotations"].items()
    assert busy["annotations"]["terrahalt.dev/since"] == b.at(0)
    shown = {"terrahalt.dev/task": "network-1", "terrahalt.dev/last-task": "network-1", "terrahalt.dev/run": b.RUN}
    assert shown.items() <= busy["labels"].items()
    idle = apply_merge_patch({"metadata": busy}, {"metadata": pod.idle_metadata()})["metadata"]
    assert idle["annotations"] == body["metadata"]["annotations"]
    assert idle["labels"] == {**body["metadata"]["labels"], "terrahalt.dev/last-task": "network-1"}


def test_a_budget_is_about_agents_with_a_run_and_no_others() -> None:
    body = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor")
    busy = apply_merge_patch(body, {"metadata": pod.busy_metadata(b.a_claim(), b.at(0))})
    idle = apply_merge_patch(busy, {"metadata": pod.idle_metadata()})
    budget = pod.budget(b.a_pool())["spec"]
    (expression,) = budget["selector"]["matchExpressions"]
    assert expression["operator"] == "Exists"
    for made, is_meant in ((body, False), (busy, True), (idle, False)):
        labels = made["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()
        assert (expression["key"] in labels) is is_meant
    assert budget["minAvailable"] > 100_000


def test_the_pod_that_is_made_is_read_back_as_an_agent_of_its_pool() -> None:
    body = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor")
    made = {"uid": "u", "name": "default-agent-1", "creationTimestamp": "2025-06-15T15:06:40Z", "resourceVersion": "1"}
    agent = objects.agent({**body, "metadata": {**body["metadata"], **made}})
    assert (agent.pool, agent.namespace, agent.has_finalizer) == ("default", "team-a", True)
    assert agent.template_hash == pod.template_hash(b.a_pool(), image="agent:1", operator_ca="CA")
    assert agent.termination_grace_s == b.a_pool().termination_grace_s
    owner = body["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("ConfigMap", "anchor", True)


def test_an_agent_is_replaced_for_another_image_but_not_for_another_size_of_the_pool() -> None:
    plain = pod.template_hash(b.a_pool(), image="agent:1", operator_ca="CA")
    assert plain == pod.template_hash(b.a_pool(max_agents=3, min_idle=2), image="agent:1", operator_ca="CA")
    assert plain != pod.template_hash(b.a_pool(), image="agent:2", operator_ca="CA")
    assert plain != pod.template_hash(b.a_pool(), image="agent:1", operator_ca="another")
    assert plain != pod.template_hash(b.a_pool(service_account="x"), image="agent:1", operator_ca="CA")
    assert plain != pod.template_hash(b.a_pool(operator_loss_s=1800), image="agent:1", operator_ca="CA")
    assert plain != pod.template_hash(b.a_pool(engine="OpenTofu"), image="agent:1", operator_ca="CA")
    assert plain != pod.template_hash(b.a_pool(termination_grace_s=120), image="agent:1", operator_ca="CA")


@pytest.mark.parametrize("engine", ["Terraform", "OpenTofu"])
def test_an_agents_pod_says_its_engine_to_the_agent_and_to_who_reads_it_back(engine: str) -> None:
    body = pod.agent_pod(b.a_pool(engine=engine), image="agent:1", operator_ca="CA", anchor_uid="anchor")
    assert {"name": "TERRAHALT_ENGINE", "value": engine} in body["spec"]["containers"][0]["env"]
    made = {"uid": "u", "name": "default-agent-1", "creationTimestamp": "2025-06-15T15:06:40Z", "resourceVersion": "1"}
    assert objects.agent({**body, "metadata": {**body["metadata"], **made}}).engine == engine


@pytest.mark.parametrize(
    ("spec", "expected"),
    [({}, None), ({"onOperatorLoss": "Continue"}, None), ({"onOperatorLoss": "Cancel"}, "1800"),
     ({"onOperatorLoss": "Cancel", "operatorLossSeconds": 60}, "60")],
)  # fmt: skip
def test_an_agent_is_told_how_long_to_wait_for_an_operator_only_where_it_is_to_cancel_then(
    spec: dict[str, Any], expected: str | None
) -> None:
    metadata = {"name": "default", "namespace": "team-a", "uid": "pool-uid", "resourceVersion": "30"}
    pool = objects.pool({"metadata": metadata, "spec": spec})
    body = pod.agent_pod(pool, image="agent:1", operator_ca="CA", anchor_uid="anchor")
    env = {entry["name"]: entry.get("value") for entry in body["spec"]["containers"][0]["env"]}
    assert env.get("TERRAHALT_OPERATOR_LOSS_SECONDS") == expected


def test_an_agent_with_several_tasks_is_told_so_and_what_it_has_to_empty_in_between() -> None:
    def told(**pool: Any) -> dict[str, Any]:
        body = pod.agent_pod(b.a_pool(**pool), image="agent:1", operator_ca="CA", anchor_uid="anchor")
        return {entry["name"]: entry.get("value") for entry in body["spec"]["containers"][0]["env"]}

    assert not {"TERRAHALT_MAX_TASKS", "TERRAHALT_SCRATCH"} & told().keys()
    several = told(max_tasks_per_agent=7)
    assert several["TERRAHALT_MAX_TASKS"] == "7"
    assert several["TERRAHALT_SCRATCH"].split(":") == ["/tmp", "/dev/shm", "/dev/mqueue"]


def test_an_agent_is_told_where_providers_are_and_has_their_volumes() -> None:
    spec = {
        "filesystemMirror": {"claimName": "mirror", "include": ["hashicorp/aws"]},
        "networkMirror": {"url": "https://mirror/"},
        "cache": {"claimName": "cache"},
    }
    pool = objects.pool({**A_POOL, "spec": {"providers": spec}})
    pod_spec = pod.agent_pod(pool, image="agent:1", operator_ca="CA", anchor_uid="anchor")["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod_spec["containers"][0]["env"]}
    told = providers.decode(env["TERRAHALT_PROVIDERS"])
    mounts = {m["name"]: (m["mountPath"], m.get("readOnly")) for m in pod_spec["containers"][0]["volumeMounts"]}
    claims = {v["name"]: v["persistentVolumeClaim"] for v in pod_spec["volumes"] if "persistentVolumeClaim" in v}
    assert told.filesystem_mirror is not None
    assert told.filesystem_mirror.include == ("hashicorp/aws",)
    assert mounts["provider-mirror"] == (told.filesystem_mirror.path, True)
    assert claims["provider-mirror"] == {"claimName": "mirror", "readOnly": True}
    assert told.network_mirror == NetworkMirror(url="https://mirror/")
    assert mounts["provider-cache"] == (told.cache, None)
    assert claims["provider-cache"] == {"claimName": "cache"}
    assert pod_spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_an_agent_of_a_pool_that_says_nothing_of_providers_has_nothing_of_them() -> None:
    pod_spec = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor")["spec"]
    assert "TERRAHALT_PROVIDERS" not in {entry["name"] for entry in pod_spec["containers"][0]["env"]}
    assert [v["name"] for v in pod_spec["volumes"]] == ["work", "tmp", "identity", "account"]
    assert "fsGroupChangePolicy" not in pod_spec["securityContext"]


# ---- pools and claims


METADATA = {"name": "default", "namespace": "team-a", "uid": "pool-uid", "resourceVersion": "30", "generation": 4}
A_POOL = {"metadata": METADATA}


def test_a_pool_is_read_with_the_defaults_of_the_schema() -> None:
    expected = b.a_pool(generation=4, min_idle=1, max_agents=10, has_finalizer=False)
    assert objects.pool({"metadata": METADATA}) == expected
    spec = {
        "engine": {"type": "OpenTofu"},
        "image": "agent:2",
        "minIdle": 0,
        "maxAgents": 3,
        "maxTasksPerAgent": 7,
        "idleTimeoutSeconds": 5,
        "drainPolicy": "Wait",
        "serviceAccountName": "tf",
        "imagePullSecrets": [{"name": "registry"}],
        "podTemplate": {"spec": {"priorityClassName": "high"}},
        "onOperatorLoss": "Cancel",
        "operatorLossSeconds": 60,
        "terminationGracePeriodSeconds": 700,
        "allowedApproval": ["Manual", "of a later version"],
        "allowMetadata": ["169.254.169.254/32"],
        "envFrom": [{"secretRef": {"name": "aws"}, "prefix": "AWS_"}],
        "providers": {"cache": {"claimName": "cache"}},
    }
    expected = b.a_pool(
        allow_metadata=("169.254.169.254/32",),
        allowed_approval=frozenset({ApprovalMode.MANUAL}),
        env_from=(EnvFromSpec(secret_ref=Reference(name="aws"), prefix="AWS_"),),
        providers=ProvidersSpec(cache=ProviderCacheSpec(claim_name="cache")),
        refresh_credentials="today",
        generation=4,
        is_deleting=True,
        engine="OpenTofu",
        image="agent:2",
        min_idle=0,
        max_agents=3,
        max_tasks_per_agent=7,
        idle_timeout_s=5,
        drain_policy=DrainPolicy.WAIT,
        service_account="tf",
        image_pull_secrets=("registry",),
        pod_template={"spec": {"priorityClassName": "high"}},
        operator_loss_s=60,
        termination_grace_s=700,
        status={"idle": 1},
    )
    annotations = {"terrahalt.dev/refresh-credentials": "today"}
    going = {"deletionTimestamp": "2025-06-15T15:06:40Z", "finalizers": ["terrahalt.dev/pool"]}
    deleted = {**METADATA, **going, "annotations": annotations}
    assert objects.pool({"metadata": deleted, "spec": spec, "status": {"idle": 1}}) == expected


def test_a_pool_that_can_not_be_read_is_named() -> None:
    with pytest.raises(ValueError, match="AgentPool team-a/default can't be read"):
        objects.pool({**A_POOL, "spec": {"envFrom": [{"secretRef": {"name": 1}}]}})


def test_a_claim_comes_back_as_it_was_written() -> None:
    task = b.a_task()
    claim = b.a_claim(task, resource_version="")
    lease = json_of(objects.claim_lease(claim, task, b.at(0)))
    lease["metadata"]["resourceVersion"] = "20"
    assert objects.claim(lease) == b.a_claim(task)
    assert lease["metadata"]["name"] == claim_name("team-a", "network")
    assert lease["metadata"]["labels"] == {"app.kubernetes.io/name": "terrahalt-claim"}
    assert lease["metadata"]["annotations"]["terrahalt.dev/state"] == "kubernetes/team-a/network-tf"
    assert lease["spec"] == {"holderIdentity": "01RUN", "acquireTime": b.at(0)}
    assert names.CLAIM_LABEL == "app.kubernetes.io/name=terrahalt-claim"


def test_a_claim_that_says_nothing_is_read_as_one_that_fits_nobody() -> None:
    claim = objects.claim({"metadata": {"name": "run-x", "resourceVersion": "1"}})
    assert claim == Claim(
        name="run-x",
        resource_version="1",
        run_id="",
        task_namespace="",
        task_name="",
        task_uid="",
        pod_name="",
        pod_uid="",
        container_id="",
        fingerprint="",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2025-06-15T15:06:40Z", 1_750_000_000.0),
        ("2025-06-15T15:06:40.250000Z", 1_750_000_000.25),
        ("2025-06-15T17:06:40+02:00", 1_750_000_000.0),
    ],
)
def test_times_are_read_in_utc(text: str, seconds: float) -> None:
    assert status.seconds(text) == seconds
