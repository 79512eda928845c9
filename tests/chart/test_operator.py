"""The operator's pod: what it runs, what it is told, and how little it may do on its node."""

from __future__ import annotations

import copy
import importlib.util
import tomllib
from typing import Any

import pytest
import yaml

from terrahalt_operator import uninstall
from terrahalt_operator.core.uninstall import Release
from tests.chart.helm import (
    CHART,
    CRDS_CHART,
    HOOK,
    RELEASE,
    SYSTEM,
    Helm,
    Objects,
    of_kind,
    one,
    to_be_tried,
    without_hooks,
)
from tests.crds.api_server import ROOT, ApiServer


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    template = copy.deepcopy(deployment["spec"]["template"])
    template["metadata"]["name"] = "operator"
    # Its account is another object of the chart, which a dry run does not make.
    del template["spec"]["serviceAccountName"]
    return {"apiVersion": "v1", "kind": "Pod", **template}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"))
        for variable in container["env"]
    }


def container_of(helm: Helm, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (container,) = one(helm.objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.cluster
def test_a_namespace_that_enforces_restricted_pods_takes_the_operator(
    helm: Helm, api: ApiServer, operator_namespace: str
) -> None:
    pod = pod_of(one(helm.objects(), "Deployment"))
    answer = api.create(pod, operator_namespace)
    assert answer.is_accepted, answer.body["message"]

    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = api.create(pod, operator_namespace)
    assert 'violates PodSecurity "restricted' in refused.body["message"], "the namespace enforces nothing"


def test_no_other_object_of_the_chart_has_pods_but_for_hooks(helm: Helm) -> None:
    allowed = {
        "AgentPool", "ClusterRole", "ClusterRoleBinding", "Deployment", "PodDisruptionBudget", "Role", "RoleBinding",
        "ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    assert {obj["kind"] for obj in without_hooks(helm.objects())} == allowed


def test_it_runs_as_nobody_and_writes_to_memory_only(helm: Helm) -> None:
    deployment = one(helm.objects(), "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (65532, True)
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert [volume["emptyDir"]["medium"] for volume in spec["volumes"]] == ["Memory"]


def test_there_are_two_and_an_update_takes_one_away_only_when_the_next_could_lead(helm: Helm) -> None:
    deployment = one(helm.objects(), "Deployment")
    spec = deployment["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_they_are_on_two_nodes_and_in_two_zones_where_they_can_be(helm: Helm) -> None:
    spec = one(helm.objects(), "Deployment")["spec"]
    spreads = spec["template"]["spec"]["topologySpreadConstraints"]
    assert [spread["topologyKey"] for spread in spreads] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    for spread in spreads:
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        assert spread["labelSelector"] == spec["selector"]
        assert spread["matchLabelKeys"] == ["pod-template-hash"], "pods that an update takes away would count"


@pytest.mark.parametrize(("replicas", "kept"), [(1, []), (2, [1]), (3, [1])])
def test_a_drain_takes_one_of_several_at_a_time_and_waits_for_no_single_one(
    helm: Helm, replicas: int, kept: list[int]
) -> None:
    objects = helm.objects({"operator": {"replicas": replicas}})
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert [budget["spec"]["maxUnavailable"] for budget in budgets] == kept
    deployment = one(objects, "Deployment")["spec"]
    assert deployment["replicas"] == replicas
    assert all(budget["spec"]["selector"] == deployment["selector"] for budget in budgets)


def test_it_listens_on_one_port_where_it_is_asked_for_its_health(helm: Helm) -> None:
    container = container_of(helm)
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    asked = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for probe, path in asked.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}


def test_it_is_told_where_it_is_and_what_agents_to_start(helm: Helm) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert environment(container_of(helm)) == {
        "TERRAHALT_NAMESPACE": "metadata.namespace",
        "TERRAHALT_POD_NAME": "metadata.name",
        "TERRAHALT_AGENT_IMAGE": f"ghcr.io/terrahalt/terrahalt-agent:{version}",
        "TERRAHALT_AGENT_IMAGE_OPENTOFU": f"ghcr.io/terrahalt/terrahalt-agent-tofu:{version}",
        "TERRAHALT_WATCH_NAMESPACES": "",
        "TERRAHALT_CLAIMS_NAMESPACE": SYSTEM,
        "TERRAHALT_LOG_FORMAT": "text",
    }
    told = environment(
        container_of(
            helm,
            {
                "watchNamespaces": ["team-a", "team-b"],
                "claimsNamespace": "claims",
                "pools": [],
                "operator": {"logFormat": "json"},
                "agent": {"image": {"reference": "localhost/agent:content"}},
            },
        )
    )
    assert told["TERRAHALT_WATCH_NAMESPACES"] == "team-a,team-b"
    assert told["TERRAHALT_CLAIMS_NAMESPACE"] == "claims"
    assert told["TERRAHALT_LOG_FORMAT"] == "json"
    assert told["TERRAHALT_AGENT_IMAGE"] == "localhost/agent:content"


def test_it_is_told_an_image_for_each_engine_and_none_that_nobody_named(helm: Helm) -> None:
    def images(**image: str) -> tuple[str, str]:
        told = environment(container_of(helm, {"agent": {"openTofu": {"image": image}}}))
        return told["TERRAHALT_AGENT_IMAGE"], told["TERRAHALT_AGENT_IMAGE_OPENTOFU"]

    terraform, tofu = images()
    assert tofu.partition(":")[0] == "ghcr.io/terrahalt/terrahalt-agent-tofu"
    assert terraform.partition(":")[0] == "ghcr.io/terrahalt/terrahalt-agent"
    assert images(reference="localhost/tofu:content") == (terraform, "localhost/tofu:content")
    assert images(repository="") == (terraform, "")


def test_an_image_is_a_repository_and_a_tag_or_a_whole_reference(helm: Helm) -> None:
    def image(**values: str) -> str:
        return str(container_of(helm, {"operator": {"image": values}})["image"])

    digest = "sha256:" + "0" * 64
    assert image(repository="registry.example:5000/op", tag="v1") == "registry.example:5000/op:v1"
    assert image(reference="localhost/op:content") == "localhost/op:content"
    assert image(reference=f"registry.example/op@{digest}", tag="v1") == f"registry.example/op@{digest}"
    assert container_of(helm)["imagePullPolicy"] == "IfNotPresent"


def test_all_repositories_are_taken_from_one_registry_and_whole_references_as_they_are(helm: Helm) -> None:
    def images(registry: str, **operator: str) -> set[str]:
        container = container_of(helm, {"imageRegistry": registry, "operator": {"image": operator}})
        told = environment(container)
        named = container["image"], told["TERRAHALT_AGENT_IMAGE"], told["TERRAHALT_AGENT_IMAGE_OPENTOFU"]
        return {image.rpartition(":")[0] for image in named}

    of_agents = {"m.example:5000/x/terrahalt/terrahalt-agent", "m.example:5000/x/terrahalt/terrahalt-agent-tofu"}
    assert images("m.example:5000/x") == {"m.example:5000/x/terrahalt/terrahalt-operator", *of_agents}
    assert images("m.example:5000/x", repository="localhost/op") == {"m.example:5000/x/op", *of_agents}
    assert images("m.example:5000/x", repository="team/op") == {"m.example:5000/x/team/op", *of_agents}
    assert images("m.example:5000/x", reference="localhost/op:content") == {"localhost/op", *of_agents}


def test_it_is_placed_where_the_values_say(helm: Helm) -> None:
    values = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "system-cluster-critical",
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
    }
    spec = one(helm.objects({"operator": values}), "Deployment")["spec"]["template"]["spec"]
    assert {name: spec[name] for name in values} == values


def hooks(helm: Helm, values: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """What helm runs of the operator's image, by its kind."""
    return {obj["kind"]: obj for obj in of_kind(helm.objects(values), "Job", "Pod")}


def test_what_helm_runs_is_as_little_trusted_as_the_operator_and_placed_like_it(helm: Helm) -> None:
    values = {"operator": {"nodeSelector": {"disk": "ssd"}, "imagePullSecrets": [{"name": "registry"}]}}
    operator = one(helm.objects(values), "Deployment")["spec"]["template"]["spec"]
    found = hooks(helm, values)
    for spec in (found["Pod"]["spec"], found["Job"]["spec"]["template"]["spec"]):
        for field in ("securityContext", "nodeSelector", "imagePullSecrets", "enableServiceLinks"):
            assert spec[field] == operator[field]
        (container,), (as_it_is,) = spec["containers"], operator["containers"]
        for field in ("image", "imagePullPolicy", "securityContext", "resources"):
            assert container[field] == as_it_is[field]
        _, _, module = container["command"]
        assert importlib.util.find_spec(module), f"the image has no {module}"
        assert spec["restartPolicy"] == "Never"


def test_what_helm_runs_is_no_operator_to_budget_monitor_and_selector(helm: Helm) -> None:
    found = hooks(helm)
    selector = one(helm.objects(), "Deployment")["spec"]["selector"]["matchLabels"]
    for labels in (found["Pod"]["metadata"]["labels"], found["Job"]["spec"]["template"]["metadata"]["labels"]):
        assert not selector.items() <= labels.items()


def test_an_uninstall_asks_first_with_all_that_the_program_has_to_know(
    helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"watchNamespaces": ["team-a", "team-b"], "pools": [], "uninstall": {"waitSeconds": 90}}
    job = hooks(helm, values)["Job"]
    annotations = job["metadata"]["annotations"]
    assert annotations[HOOK] == "pre-delete"
    assert "hook-failed" not in annotations["helm.sh/hook-delete-policy"], "nobody could read why it was refused"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value)
    settings = uninstall.Settings.from_environment()
    assert settings == uninstall.Settings(Release(RELEASE, SYSTEM), ("team-a", "team-b"), 90.0, job["metadata"]["name"])
    assert job["spec"]["activeDeadlineSeconds"] > settings.wait_s + uninstall.GONE_WITHIN_S
    assert job["spec"]["backoffLimit"] == 0


def test_an_uninstall_that_is_not_to_ask_has_no_job(helm: Helm) -> None:
    assert set(hooks(helm, {"uninstall": {"check": False}})) == {"Pod"}


def test_two_releases_share_no_name_in_the_cluster(helm: Helm) -> None:
    releases = [
        names(helm.objects({"pools": []}, namespace=namespace, name=name))
        for namespace, name in ((SYSTEM, "terrahalt"), ("other-system", "terrahalt"), (SYSTEM, "second"))
    ]
    assert sum(map(len, releases)) == len(set().union(*releases))


def names(objects: Objects) -> set[tuple[str, str]]:
    return {(obj["kind"], f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}") for obj in objects}


@pytest.mark.parametrize("claims", ["claims", "shard-0"])
def test_shards_are_installed_side_by_side_and_each_is_bound_by_the_policies_of_its_own_operator_alone(
    helm: Helm, claims: str
) -> None:
    """Also where one of them, which was there before, has the claims of all in its own namespace."""
    seen: set[tuple[str, str]] = set()
    for number, namespace in enumerate(("team-a", "team-b")):
        values: dict[str, Any] = {"watchNamespaces": [namespace], "claimsNamespace": claims}
        values |= {"pools": [{"name": "default", "namespace": namespace}]}
        objects = helm.objects(values, namespace=f"shard-{number}")
        assert not seen & names(objects)
        seen |= names(objects)
        bindings = of_kind(objects, "ValidatingAdmissionPolicyBinding")
        policies = {policy["metadata"]["name"] for policy in of_kind(objects, "ValidatingAdmissionPolicy")}
        assert {binding["spec"]["policyName"] for binding in bindings} == policies
        for binding in bindings:
            (expression,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
            assert (expression["operator"], expression["values"]) == ("In", [namespace])


@pytest.mark.cluster
def test_the_longest_release_name_gives_names_that_fit(helm: Helm, api: ApiServer, operator_namespace: str) -> None:
    for name in ("r" * 53, "terrahalt-" + "r" * 43):
        objects = helm.objects({"pools": []}, namespace=operator_namespace, name=name)
        api.kubectl("apply", "--dry-run=server", "-f", "-", stdin=to_be_tried(objects))


def test_every_object_says_what_it_belongs_to_and_where_it_lives(helm: Helm) -> None:
    for obj in helm.objects({"watchNamespaces": ["default"]}):
        assert obj["metadata"]["labels"]["app.kubernetes.io/part-of"] == "terrahalt"
        is_of_the_cluster = obj["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy"))
        assert ("namespace" in obj["metadata"]) == (not is_of_the_cluster), obj["metadata"]
    assert of_kind(helm.objects(), "Deployment")[0]["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "terrahalt-operator",
        "app.kubernetes.io/instance": "terrahalt",
    }


def test_the_charts_have_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for chart in (CHART, CRDS_CHART):
        described = yaml.safe_load((chart / "Chart.yaml").read_text())
        assert (described["version"], described["appVersion"]) == (version, version)
