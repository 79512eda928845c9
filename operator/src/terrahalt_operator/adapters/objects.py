"""API objects (JSON) to the core's values and back. Pure translation; decides nothing.

An object that the schema would refuse is a `ValueError` that names it; `world` reports it and goes on
with the others. Called by `world`, `store` and `effects`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from terrahalt_operator.core import identity, names
from terrahalt_operator.core.model import (
    DEFAULT_IDLE_TIMEOUT_SECONDS,
    Agent,
    ApprovalMode,
    Claim,
    DrainPolicy,
    Ended,
    EnvFromSpec,
    Pool,
    ProvidersSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from terrahalt_operator.core.status import seconds
from terrahalt_protocol import budget

Json = dict[str, Any]

_POD_GRACE_S = 30
"""What Kubernetes gives a pod that asks for no other grace."""
SHARED_CHARS = 200
_USUAL_WAITS = ("", "ContainerCreating", "PodInitializing")


def version(obj: Json) -> int:
    """The resourceVersion as the number that it is; later writes have higher ones."""
    return int(obj["metadata"]["resourceVersion"])


def task(obj: Json) -> Task:
    meta = obj["metadata"]
    try:
        spec = msgspec.convert(obj["spec"], TaskSpec)
        status = msgspec.convert(_shared(obj.get("status") or {}), TaskStatus)
    except (msgspec.ValidationError, KeyError) as error:
        raise ValueError(f"TerraformTask {meta['namespace']}/{meta['name']} can't be read: {error}") from error
    annotations = meta.get("annotations") or {}
    stamp = annotations.get(names.UID_ANNOTATION)
    return Task(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta["resourceVersion"],
        created_at=seconds(meta["creationTimestamp"]),
        is_deleting="deletionTimestamp" in meta,
        has_finalizer=names.TASK_FINALIZER in meta.get("finalizers", ()),
        stamp=stamp,
        arrived=_number(annotations.get(names.ARRIVED_ANNOTATION)) if stamp == meta["uid"] else version(obj),
        spec=spec,
        status=status,
    )


def _shared(part: Any) -> Any:
    """The same with each text there once: seven conditions of a task say much the same, and ten thousand tasks do. The
    texts of a dictionary, most of what there is, take no call each."""
    if type(part) is str:
        return _once(part) if len(part) <= SHARED_CHARS else part
    if type(part) is dict:
        return {
            key: _once(value) if type(value) is str and len(value) <= SHARED_CHARS else _shared(value)
            for key, value in part.items()
        }
    return [_shared(value) for value in part] if type(part) is list else part


@lru_cache(maxsize=4096)
def _once(text: str) -> str:
    """Of equal ones the first. Not `sys.intern`: Python 3.12 never lets go of what that was given."""
    return text


def _number(text: str | None) -> int:
    """0 for what is none: somebody may have written there."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else 0


def status_patch(old: Json, new: TaskStatus) -> Json:
    """The merge patch that turns the object's status into `new`, refused if the object changed."""
    wanted = msgspec.json.decode(msgspec.json.encode(new))  # as JSON has it: lists, not tuples
    return {
        "metadata": {"resourceVersion": old["metadata"]["resourceVersion"]},
        "status": merge_patch(old.get("status") or {}, wanted),
    }


def merge_patch(old: Json, new: Json) -> Json:
    """RFC 7386: what has to be sent to turn `old` into `new`; null removes."""
    patch: Json = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if changes := merge_patch(before, value):
                patch[key] = changes
        elif before != value:
            patch[key] = value
    return patch


def pool(obj: Json) -> Pool:
    meta, spec = obj["metadata"], obj.get("spec") or {}
    try:
        env_from = msgspec.convert(spec.get("envFrom", ()), tuple[EnvFromSpec, ...])
        providers = msgspec.convert(spec.get("providers", {}), ProvidersSpec)
    except msgspec.ValidationError as error:
        raise ValueError(f"AgentPool {meta['namespace']}/{meta['name']} can't be read: {error}") from error
    return Pool(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta["resourceVersion"],
        is_deleting="deletionTimestamp" in meta,
        has_finalizer=names.POOL_FINALIZER in meta.get("finalizers", ()),
        engine=(spec.get("engine") or {}).get("type", "Terraform"),
        image=spec.get("image", ""),
        min_idle=spec.get("minIdle", 1),
        max_agents=spec.get("maxAgents", 10),
        max_tasks_per_agent=spec.get("maxTasksPerAgent", 1),
        idle_timeout_s=spec.get("idleTimeoutSeconds", DEFAULT_IDLE_TIMEOUT_SECONDS),
        # A later version's is at least no reason to let go of a run.
        drain_policy=DrainPolicy.LADDER if spec.get("drainPolicy", "Ladder") == "Ladder" else DrainPolicy.WAIT,
        service_account=spec.get("serviceAccountName", "terrahalt-agent"),
        image_pull_secrets=tuple(ref["name"] for ref in spec.get("imagePullSecrets", ())),
        pod_template=spec.get("podTemplate") or {},
        operator_loss_s=spec.get("operatorLossSeconds", 1800) if spec.get("onOperatorLoss") == "Cancel" else None,
        termination_grace_s=spec.get(
            "terminationGracePeriodSeconds", budget.pod_grace_s(budget.DEFAULT_CANCEL_GRACE_S)
        ),
        allowed_approval=frozenset(mode for mode in ApprovalMode if mode in spec.get("allowedApproval", ApprovalMode)),
        allow_metadata=tuple(spec.get("allowMetadata", ())),
        env_from=env_from,
        providers=providers,
        refresh_credentials=(meta.get("annotations") or {}).get(names.REFRESH_ANNOTATION, ""),
        status=obj.get("status") or {},
    )


def _ended(container: Json, state: Json, status: Json) -> Ended | None:
    """A kubelet that has lost sight of a container, as its runtime was started anew, says `terminated` of it too,
    without an ID in there: its processes may be alive. Once it has ended the pod, as its phase tells, none is; the
    phase that the garbage collector writes tells nothing."""
    terminated: Json | None = state.get("terminated")
    if terminated is None:
        return None
    if not terminated.get("containerID"):
        by_collector = any(c.get("reason") == "DeletionByPodGC" for c in status.get("conditions", ()))
        if by_collector or status.get("phase") not in ("Failed", "Succeeded"):
            return None
    return Ended(
        container_id=terminated.get("containerID") or container.get("containerID", ""),
        exit_code=terminated.get("exitCode", 0),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        finished_at=seconds(terminated["finishedAt"]) if terminated.get("finishedAt") else 0.0,
    )


def agent(obj: Json) -> Agent:
    meta, status = obj["metadata"], obj.get("status") or {}
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    container: Json = next((c for c in status.get("containerStatuses", ()) if c["name"] == names.AGENT_CONTAINER), {})
    state: Json = container.get("state") or {}
    ended = _ended(container, state, status)
    # A pod's deletionTimestamp lies in the future, by the grace that it was deleted with.
    grace_s = meta.get("deletionGracePeriodSeconds") or 0
    killed_at = seconds(meta["deletionTimestamp"]) if grace_s else None
    return Agent(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        pool=labels.get(names.POOL_LABEL, ""),
        engine=labels.get(names.ENGINE_LABEL, "Terraform"),
        resource_version=meta.get("resourceVersion", ""),
        template_hash=annotations.get(names.TEMPLATE_ANNOTATION, ""),
        proof=annotations.get(names.PROOF_ANNOTATION, ""),
        created_at=seconds(meta["creationTimestamp"]),
        termination_grace_s=(obj.get("spec") or {}).get("terminationGracePeriodSeconds", _POD_GRACE_S),
        is_deleting="deletionTimestamp" in meta,
        deleted_at=killed_at - grace_s if killed_at else None,
        killed_at=killed_at,
        has_finalizer=names.AGENT_FINALIZER in meta.get("finalizers", ()),
        ip=status.get("podIP", ""),
        phase=status.get("phase", ""),
        container_id=container.get("containerID", ""),
        # With the name by which this node has pulled it, or without.
        image=container.get("imageID", "").rpartition("@")[2],
        is_running="running" in state or ("terminated" in state and ended is None),
        ended=ended,
        waiting_reason=_waiting_reason(status),
        unstarted_since=_unstarted_since(status, container),
        task_label=labels.get(names.TASK_LABEL, ""),
        run_label=labels.get(names.RUN_LABEL, ""),
        last_task_label=labels.get(names.LAST_TASK_LABEL, ""),
    )


def _waiting_reason(status: Json) -> str:
    """Of the scheduler, or of the first container that its kubelet can't start: those before the agent's too."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".removesuffix(": ")
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting: Json = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", "") not in _USUAL_WAITS:
            return f"{waiting['reason']}: {waiting.get('message', '')}".removesuffix(": ")
    return ""


def _unstarted_since(status: Json, container: Json) -> float | None:
    waiting: Json | None = (container.get("state") or {}).get("waiting")
    if waiting is None or waiting.get("reason") or not container.get("containerID"):
        return None
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodReadyToStartContainers":
            return seconds(condition["lastTransitionTime"]) if condition["status"] == "False" else None
    return None


_CLAIM_ANNOTATIONS = {
    name: "terrahalt.dev/" + name.replace("_", "-")
    for name in ("task_namespace", "task_name", "task_uid", "pod_name", "pod_uid", "container_id", "fingerprint")
}


def claim(obj: Json) -> Claim:
    meta = obj["metadata"]
    annotations = meta.get("annotations") or {}
    values = {name: annotations.get(annotation, "") for name, annotation in _CLAIM_ANNOTATIONS.items()}
    return Claim(
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        run_id=(obj.get("spec") or {}).get("holderIdentity", ""),
        **values,
    )


def claim_lease(new: Claim, task: Task, acquired_at: str) -> Json:
    identity_ = identity.state_identity(task.namespace, task.spec.workspace, task.spec.backend)
    annotations = {annotation: getattr(new, name) for name, annotation in _CLAIM_ANNOTATIONS.items()}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": new.name,
            "labels": dict([names.CLAIM_LABEL.split("=")]),
            "annotations": annotations | {"terrahalt.dev/state": identity_},
        },
        "spec": {"holderIdentity": new.run_id, "acquireTime": acquired_at},
    }
