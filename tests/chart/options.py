"""Every option of the chart, with values that it may have beside its default, for the tests of all of them."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.chart.helm import CHART

DIGEST = "sha256:" + "0" * 64
SCRAPER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
POOLS: list[dict[str, Any]] = [
    {"name": "default", "namespace": "team-a"},
    {
        "name": "full",
        "namespace": "team-b",
        "minIdle": 0,
        "maxAgents": 3,
        "maxTasksPerAgent": 5,
        "idleTimeoutSeconds": 0,
        "terminationGracePeriodSeconds": 600,
        "drainPolicy": "Wait",
        "allowedApproval": ["Manual"],
        "onOperatorLoss": "Cancel",
        "operatorLossSeconds": 600,
        "engine": "OpenTofu",
        "image": f"registry.example/tofu@{DIGEST}",
        "imagePullSecrets": [{"name": "own"}],
        "serviceAccountName": "own-agent",
        "serviceAccountAnnotations": {"example.com/role": "writer"},
        "envFrom": [{"secretRef": {"name": "cloud"}}],
        "providers": {"cache": {"claimName": "providers"}},
        "podTemplate": {"spec": {"nodeSelector": {"pool": "tf"}}},
        "allowMetadata": ["169.254.169.254/32"],
    },
]
"""The second one has everything that a pool may have."""

OPTIONS: dict[str, list[Any]] = {
    "watchNamespaces": [["team-a", "team-b"]],
    "claimsNamespace": ["terrahalt-claims"],
    "imageRegistry": ["mirror.example:5000/x"],
    "commonLabels": [{"team": "platform", "app.kubernetes.io/name": "ours-wins"}],
    "commonAnnotations": [{"example.com/contact": "platform"}],
    "operator.replicas": [1, 3],
    "operator.image.repository": ["registry.example/op"],
    "operator.image.tag": ["v9"],
    "operator.image.reference": [f"registry.example/op@{DIGEST}"],
    "operator.image.pullPolicy": ["Always"],
    "operator.imagePullSecrets": [[{"name": "registry"}]],
    "operator.logFormat": ["json"],
    "operator.resources": [{"limits": {"cpu": "2"}}],
    "operator.nodeSelector": [{"disk": "ssd"}],
    "operator.tolerations": [[{"key": "infra", "operator": "Exists"}]],
    "operator.affinity": [{"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}],
    "operator.topologySpreadConstraints": [
        [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]
    ],
    "operator.priorityClassName": ["system-cluster-critical"],
    "operator.podLabels": [{"mesh": "off", "app.kubernetes.io/instance": "ours-wins"}],
    "operator.podAnnotations": [{"example.com/inject": "false"}],
    "operator.serviceAccountAnnotations": [{"example.com/role": "reader"}],
    "agent.image.repository": ["registry.example/agent"],
    "agent.image.tag": ["v9"],
    "agent.image.reference": ["registry.example/agent:v9"],
    "agent.openTofu.image.repository": [""],
    "agent.openTofu.image.tag": ["v9"],
    "agent.openTofu.image.reference": ["registry.example/tofu:v9"],
    "agent.imagePullSecrets": [[{"name": "registry"}]],
    "agent.serviceAccountAnnotations": [{"example.com/role": "nobody"}],
    "agent.extraRules": [[{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create"]}]],
    "admissionPolicies.enabled": [False],
    "uninstall.check": [False],
    "uninstall.waitSeconds": [604800],
    "metrics.agentsFrom": [SCRAPER],
    "metrics.podMonitors.enabled": [True],
    "metrics.podMonitors.agents": [True],
    "metrics.podMonitors.interval": ["30s"],
    "metrics.podMonitors.labels": [{"release": "prometheus"}],
    "metrics.alerts.enabled": [True],
    "metrics.alerts.labels": [{"release": "prometheus"}],
    "metrics.dashboard.enabled": [True],
    "metrics.dashboard.labels": [{"grafana": "1"}],
    "pools": [[], POOLS],
}
NEEDS: dict[str, dict[str, Any]] = {
    "watchNamespaces": {"pools": POOLS},
    "claimsNamespace": {"watchNamespaces": ["team-a", "team-b"], "pools": POOLS},
    "metrics.podMonitors.agents": {"metrics.podMonitors.enabled": True, "metrics.agentsFrom": SCRAPER},
    "metrics.podMonitors.interval": {"metrics.podMonitors.enabled": True},
    "metrics.podMonitors.labels": {"metrics.podMonitors.enabled": True},
    "metrics.alerts.labels": {"metrics.alerts.enabled": True},
    "metrics.dashboard.labels": {"metrics.dashboard.enabled": True},
}
"""Without which an option says nothing, or is refused."""

WHOLE = frozenset({"operator.resources", "operator.affinity", "pools", "metrics.agentsFrom"})
"""Options whose fields are Kubernetes' own, or the pools'; the schema goes on below them."""


def schema() -> dict[str, Any]:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def default_values() -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def described(below: dict[str, Any] | None = None, path: str = "") -> dict[str, dict[str, Any]]:
    """Each option that the schema has -> what it says of it."""
    root = schema()
    found: dict[str, dict[str, Any]] = {}
    for name, written in (below or root)["properties"].items():
        entry = root["definitions"][written["$ref"].rpartition("/")[2]] if "$ref" in written else written
        here = f"{path}{name}"
        if "properties" in entry and here not in WHOLE:
            found |= described(entry, f"{here}.")
        else:
            found[here] = entry
    return {name: entry for name, entry in found.items() if name != "global"}


def nested(chosen: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as helm takes it."""
    values: dict[str, Any] = {}
    for path, value in chosen.items():
        *above, last = path.split(".")
        level = values
        for name in above:
            level = level.setdefault(name, {})
        level[last] = value
    return values
