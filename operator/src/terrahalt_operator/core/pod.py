"""The agent's pod, the anchor that owns it, and the proof by which it is known for ours. Pure.

The pod carries everything that a run's safety rests on: no restart (a second life would forget its
run), a grace that holds the whole ladder, the finalizer that keeps the object until its end was seen,
no service links (they would put the cluster's Services into terraform's environment). Called by
`effects` when agents are made, and by `world`, which asks for the proof.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import lru_cache
from typing import Any

from terrahalt_operator.core import names, pod_template
from terrahalt_operator.core.identity import label_value
from terrahalt_operator.core.model import Claim, Pool
from terrahalt_protocol import providers
from terrahalt_protocol.providers import FilesystemMirror, NetworkMirror, Providers

CONTROL_PORT = 8443
HEALTH_PORT = 8081
TOKEN_S = 3600


def anchor_name(pool: str) -> str:
    return f"terrahalt-agents-{pool}"


def anchor(pool: Pool) -> dict[str, Any]:
    """Owns the pool's agents in the pool's stead: deleting the pool must not cascade to busy agents."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": anchor_name(pool.name),
            "namespace": pool.namespace,
            "labels": {names.NAME_LABEL: "terrahalt-anchor", names.POOL_LABEL: pool.name},
        },
        "data": {"why": "owns the agent pods of this pool, so that drain and autoscalers treat them as managed"},
    }


def anchor_reference(pool: str, uid: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": anchor_name(pool),
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def budget(pool: Pool) -> dict[str, Any]:
    """Refuses every eviction of an agent with a run. Of no such number are there ever more: with maxUnavailable 0 the
    API server lets some pods go whose owner has no scale."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": anchor_name(pool.name),
            "namespace": pool.namespace,
            "labels": {names.NAME_LABEL: names.BUDGET_NAME, names.POOL_LABEL: pool.name},
        },
        "spec": {
            "minAvailable": 1_000_000,
            "selector": {
                "matchLabels": {names.NAME_LABEL: names.AGENT_NAME, names.POOL_LABEL: pool.name},
                "matchExpressions": [{"key": names.RUN_LABEL, "operator": "Exists"}],
            },
        },
    }


def agent_pod(pool: Pool, *, image: str, operator_ca: str, anchor_uid: str) -> dict[str, Any]:
    """One agent of the pool; the API server gives it its name."""
    meta = pool.pod_template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{pool.name}-agent-",
            "namespace": pool.namespace,
            "labels": {
                **(meta.get("labels") or {}),
                names.NAME_LABEL: names.AGENT_NAME,
                names.POOL_LABEL: pool.name,
                names.ENGINE_LABEL: pool.engine,
                "app.kubernetes.io/managed-by": "terrahalt",
            },
            "annotations": {
                **(meta.get("annotations") or {}),
                names.TEMPLATE_ANNOTATION: template_hash(pool, image=image, operator_ca=operator_ca),
                names.SAFE_TO_EVICT: "true",
            },
            "finalizers": [names.AGENT_FINALIZER],
            "ownerReferences": [anchor_reference(pool.name, anchor_uid)],
        },
        "spec": _template(pool, image, operator_ca),
    }


def busy_metadata(claim: Claim, since: str) -> dict[str, Any]:
    """What a pod gets before its run begins: who runs there, and that no autoscaler may take it."""
    task = label_value(claim.task_name)
    return {
        "labels": {names.TASK_LABEL: task, names.LAST_TASK_LABEL: task, names.RUN_LABEL: claim.run_id},
        "annotations": {names.SINCE_ANNOTATION: since, names.DO_NOT_DISRUPT: "true", names.SAFE_TO_EVICT: "false"},
    }


def idle_metadata() -> dict[str, Any]:
    """What it gets once nothing runs there any more; `last-task` stays, for its log."""
    return {
        "labels": {names.TASK_LABEL: None, names.RUN_LABEL: None},
        "annotations": {names.SINCE_ANNOTATION: None, names.DO_NOT_DISRUPT: None, names.SAFE_TO_EVICT: "true"},
    }


@lru_cache(maxsize=4_096)
def proof(installation_secret: bytes, pod_uid: str) -> str:
    """Says that the operator made this very pod: labels and owners can be forged by whoever may create pods."""
    return hmac.new(installation_secret, b"agent:" + pod_uid.encode(), hashlib.sha256).hexdigest()


def is_proven(value: str, installation_secret: bytes, pod_uid: str) -> bool:
    return hmac.compare_digest(value.encode(), proof(installation_secret, pod_uid).encode())


def template_hash(pool: Pool, *, image: str, operator_ca: str) -> str:
    """Differs where an idle agent would have to be replaced."""
    spec, meta = _template(pool, image, operator_ca), pool.pod_template.get("metadata")
    text = json.dumps([spec, meta] if meta else spec, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_SCRATCH = "/tmp:/dev/shm:/dev/mqueue"
"""What a run can write to beside its working directory, and what is emptied before the next one."""


def _several_tasks(pool: Pool) -> list[dict[str, Any]]:
    if pool.max_tasks_per_agent == 1:
        return []
    values = {"TERRAHALT_MAX_TASKS": str(pool.max_tasks_per_agent), "TERRAHALT_SCRATCH": _SCRATCH}
    return [{"name": name, "value": value} for name, value in values.items()]


def _operator_loss(pool: Pool) -> list[dict[str, Any]]:
    if pool.operator_loss_s is None:
        return []
    return [{"name": "TERRAHALT_OPERATOR_LOSS_SECONDS", "value": str(pool.operator_loss_s)}]


def _token(**audience: str) -> dict[str, Any]:
    """One that the kubelet renews; for the API server, where no audience is named."""
    return {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_S, **audience}}


def _providers(pool: Pool) -> list[dict[str, Any]]:
    mirror, network = pool.providers.filesystem_mirror, pool.providers.network_mirror
    told = Providers(
        filesystem_mirror=FilesystemMirror(path=providers.MIRROR_PATH, include=mirror.include) if mirror else None,
        network_mirror=NetworkMirror(url=network.url, include=network.include) if network else None,
        cache=providers.CACHE_PATH if pool.providers.cache else "",
    )
    return [{"name": providers.VARIABLE, "value": providers.encode(told)}] if told != Providers() else []


def _claims(pool: Pool) -> list[tuple[str, str, str, bool]]:
    """Volumes of the user's that hold providers: name, claim, where, and whether nobody writes there."""
    mirror, cache = pool.providers.filesystem_mirror, pool.providers.cache
    mirrors = [(pod_template.MIRROR_VOLUME, mirror.claim_name, providers.MIRROR_PATH, True)] if mirror else []
    return mirrors + ([(pod_template.CACHE_VOLUME, cache.claim_name, providers.CACHE_PATH, False)] if cache else [])


def _read_only(*, is_read_only: bool) -> dict[str, Any]:
    return {"readOnly": True} if is_read_only else {}


def _template(pool: Pool, image: str, operator_ca: str) -> dict[str, Any]:
    spec = _safe_template(pool, image, operator_ca)
    if pool.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in pool.image_pull_secrets]
    return pod_template.merged(spec, pool.pod_template.get("spec") or {})


def _safe_template(pool: Pool, image: str, operator_ca: str) -> dict[str, Any]:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return {
        "restartPolicy": "Never",
        "serviceAccountName": pool.service_account,
        # Below, for the agent alone: whatever the account says, for an hour only, and for no sidecar.
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": pool.termination_grace_s,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            # A cache of thousands of files would be walked through at each start.
            **({"fsGroupChangePolicy": "OnRootMismatch"} if pool.providers.cache else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": names.AGENT_CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                # Why an agent could not even start outlives its pod; a final report is never replaced by it.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "env": [
                    field("TERRAHALT_POD_NAME", "metadata.name"),
                    field("TERRAHALT_POD_NAMESPACE", "metadata.namespace"),
                    field("TERRAHALT_POD_UID", "metadata.uid"),
                    {"name": "TERRAHALT_OPERATOR_CA", "value": operator_ca},
                    {"name": "TERRAHALT_ENGINE", "value": pool.engine},
                    *_operator_loss(pool),
                    *_several_tasks(pool),
                    *_providers(pool),
                ],
                "ports": [
                    {"name": "control", "containerPort": CONTROL_PORT},
                    {"name": "health", "containerPort": HEALTH_PORT},
                ],
                "readinessProbe": {
                    "httpGet": {"path": "/readyz", "port": "health"},
                    "periodSeconds": 5,
                },
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "work", "mountPath": "/work"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "identity", "mountPath": "/var/run/secrets/terrahalt.dev/agent", "readOnly": True},
                    {"name": "account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
                    *(
                        {"name": name, "mountPath": path, **_read_only(is_read_only=is_read_only)}
                        for name, _, path, is_read_only in _claims(pool)
                    ),
                ],
            }
        ],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "identity", "projected": {"sources": [_token(audience=names.TOKEN_AUDIENCE)]}},
            {
                "name": "account",
                "projected": {
                    "sources": [
                        _token(),
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        {
                            "downwardAPI": {
                                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                            }
                        },
                    ]
                },
            },
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": claim, **_read_only(is_read_only=is_read_only)}}
                for name, claim, _, is_read_only in _claims(pool)
            ),
        ],
    }
