"""What the chart has for Prometheus and Grafana: nothing by itself; monitors that fit the pods, rules, a dashboard."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from terrahalt_operator.core import names, pod
from tests.chart.helm import CHART, SYSTEM, Helm, Objects, of_kind, one
from tests.operator_core import builders as b

SCRAPER = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}
KINDS = ("PodMonitor", "PrometheusRule", "ConfigMap")


def monitors(helm: Helm, **values: Any) -> dict[str, dict[str, Any]]:
    """By their names."""
    metrics = {"agentsFrom": SCRAPER, "podMonitors": {"enabled": True, "agents": True, **values.pop("monitors", {})}}
    found = of_kind(helm.objects({"metrics": metrics, **values}), "PodMonitor")
    return {obj["metadata"]["name"]: obj for obj in found}


def port_of(container: dict[str, Any], endpoint: dict[str, Any]) -> int:
    """Which port of the pod an endpoint means; its path is Prometheus' own, /metrics."""
    assert "path" not in endpoint
    return next(int(p["containerPort"]) for p in container["ports"] if p["name"] == endpoint["port"])


def test_nothing_of_it_is_there_by_itself(helm: Helm) -> None:
    objects = helm.objects()
    assert of_kind(objects, *KINDS) == []
    assert "TERRAHALT_AGENT_METRICS_FROM" not in json.dumps(objects)


def test_operators_are_found_by_their_monitor(helm: Helm) -> None:
    monitor = monitors(helm)["terrahalt-operator"]
    template = one(helm.objects(), "Deployment")["spec"]["template"]
    assert monitor["metadata"]["namespace"] == SYSTEM
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert port_of(template["spec"]["containers"][0], endpoint) == 8080
    assert endpoint["honorLabels"], "a pool's namespace would become exported_namespace"


@pytest.mark.parametrize(
    ("watched", "namespaces"),
    [([], {"any": True}), (["team-a", "team-b"], {"matchNames": ["team-a", "team-b"]})],
)
def test_agents_are_found_by_theirs_in_the_namespaces_that_are_served(
    helm: Helm, watched: list[str], namespaces: dict[str, Any]
) -> None:
    found = monitors(helm, watchNamespaces=watched, pools=[])
    monitor = found["terrahalt-agents"]["spec"]
    agent = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor-uid")
    labels = agent["metadata"]["labels"]
    assert monitor["namespaceSelector"] == namespaces
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {*monitor["podTargetLabels"], monitor["jobLabel"]} <= set(labels)
    assert names.TASK_LABEL not in monitor["podTargetLabels"], "its tasks' names would be labels"
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert port_of(agent["spec"]["containers"][0], endpoint) == pod.HEALTH_PORT


def test_agents_are_not_scraped_unless_that_is_said_too(helm: Helm) -> None:
    assert set(monitors(helm, monitors={"agents": False})) == {"terrahalt-operator"}


def test_agents_that_nobody_may_reach_are_not_to_be_scraped(helm: Helm) -> None:
    complaint = helm.complaint({"metrics": {"podMonitors": {"enabled": True, "agents": True}}})
    assert "say in metrics.agentsFrom who scrapes" in complaint


def test_the_operator_is_told_who_may_scrape_agents(helm: Helm) -> None:
    container = one(helm.objects({"metrics": {"agentsFrom": SCRAPER}}), "Deployment")["spec"]["template"]["spec"]
    (value,) = [e["value"] for e in container["containers"][0]["env"] if e["name"] == "TERRAHALT_AGENT_METRICS_FROM"]
    assert json.loads(value) == SCRAPER


def everything(helm: Helm, labels: dict[str, str]) -> Objects:
    more = {"enabled": True, "labels": labels}
    metrics = {"podMonitors": {**more, "interval": "15s"}, "alerts": more, "dashboard": more}
    return of_kind(helm.objects({"metrics": metrics}), *KINDS)


def test_labels_and_the_interval_are_as_one_likes(helm: Helm) -> None:
    objects = everything(helm, {"release": "prometheus"})
    assert sorted(obj["kind"] for obj in objects) == sorted(KINDS)
    for obj in objects:
        assert obj["metadata"]["labels"]["release"] == "prometheus"
        assert obj["metadata"]["labels"]["app.kubernetes.io/instance"] == "terrahalt"
    assert one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"] == "15s"


def test_the_rules_are_those_of_the_file_that_is_tried(helm: Helm) -> None:
    rule = one(everything(helm, {}), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())


def test_the_dashboard_is_where_grafanas_sidecar_looks_for_it(helm: Helm) -> None:
    config_map = one(everything(helm, {}), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config_map["data"]["terrahalt.json"])["title"] == "Terrahalt"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"agentsFrom": {"pods": {}}}, "/metrics/agentsFrom"),
        ({"podMonitors": {"interval": "often"}}, "/metrics/podMonitors/interval"),
        ({"alerts": {"on": True}}, "/metrics/alerts"),
        ({"dashboard": {"labels": {"grafana_dashboard": 1}}}, "/metrics/dashboard/labels/grafana_dashboard"),
    ],
)
def test_wrong_values_are_refused_with_the_place_where_they_are(helm: Helm, values: Any, says: str) -> None:
    assert says in helm.complaint({"metrics": values})
