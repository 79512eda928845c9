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
from typing import Any

from terrahalt_operator.core import names
from terrahalt_operator.core.model import Pool
from terrahalt_protocol import providers
from terrahalt_protocol.providers import FilesystemMirror, NetworkMirror, Providers

CONTROL_PORT = 8443
HEALTH_PORT = 8081


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


def agent_pod(pool: Pool, *, image: str, operator_ca: str, anchor_uid: str) -> dict[str, Any]:
    """One agent of the pool; the API server gives it its name."""
    template = _template(pool, image, operator_ca)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{pool.name}-agent-",
            "namespace": pool.namespace,
            "labels": {
                names.NAME_LABEL: names.AGENT_NAME,
                names.POOL_LABEL: pool.name,
                names.ENGINE_LABEL: pool.engine,
                "app.kubernetes.io/managed-by": "terrahalt",
            },
            "annotations": {names.TEMPLATE_ANNOTATION: _hash(template)},
            "finalizers": [names.AGENT_FINALIZER],
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "name": anchor_name(pool.name),
                    "uid": anchor_uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": template,
    }


def proof(installation_secret: bytes, pod_uid: str) -> str:
    """Says that the operator made this very pod: labels and owners can be forged by whoever may create pods."""
    return hmac.new(installation_secret, b"agent:" + pod_uid.encode(), hashlib.sha256).hexdigest()


def is_proven(value: str, installation_secret: bytes, pod_uid: str) -> bool:
    return hmac.compare_digest(value.encode(), proof(installation_secret, pod_uid).encode())


def template_hash(pool: Pool, *, image: str, operator_ca: str) -> str:
    """Differs where an idle agent would have to be replaced."""
    return _hash(_template(pool, image, operator_ca))


def _operator_loss(pool: Pool) -> list[dict[str, Any]]:
    if pool.operator_loss_s is None:
        return []
    return [{"name": "TERRAHALT_OPERATOR_LOSS_SECONDS", "value": str(pool.operator_loss_s)}]


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
    mirrors = [("provider-mirror", mirror.claim_name, providers.MIRROR_PATH, True)] if mirror else []
    return mirrors + ([("provider-cache", cache.claim_name, providers.CACHE_PATH, False)] if cache else [])


def _read_only(*, is_read_only: bool) -> dict[str, Any]:
    return {"readOnly": True} if is_read_only else {}


def _hash(template: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def _template(pool: Pool, image: str, operator_ca: str) -> dict[str, Any]:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return {
        "restartPolicy": "Never",
        "serviceAccountName": pool.service_account,
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
            {
                "name": "identity",
                "projected": {
                    "sources": [
                        {
                            "serviceAccountToken": {
                                "path": "token",
                                "audience": names.TOKEN_AUDIENCE,
                                "expirationSeconds": 3600,
                            }
                        }
                    ]
                },
            },
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": claim, **_read_only(is_read_only=is_read_only)}}
                for name, claim, _, is_read_only in _claims(pool)
            ),
        ],
    }
