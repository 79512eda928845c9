"""The chart as a whole: it lints, the API server takes it, wrong values are refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, CRDS_CHART, RELEASE, SYSTEM, Helm, of_kind, one, to_be_tried, without_hooks
from tests.crds.api_server import ROOT, ApiServer

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize("chart", [CHART, CRDS_CHART], ids=lambda chart: chart.name)
def test_helm_lint_has_nothing_to_say(helm: Helm, chart: object) -> None:
    done = helm("lint", "--strict", str(chart))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize("watched", [False, True], ids=["the-whole-cluster", "some-namespaces"])
def test_the_api_server_takes_what_the_chart_renders(
    helm: Helm, api: ApiServer, operator_namespace: str, pool_namespace: str, watched: bool
) -> None:
    values = {
        "watchNamespaces": [pool_namespace] if watched else [],
        "claimsNamespace": "default" if watched else "",
        "pools": [
            {"name": "default", "namespace": pool_namespace},
            {"name": "fast", "namespace": pool_namespace, "minIdle": 0, "maxAgents": 1, "image": f"a/b@{DIGEST}"},
            {"name": "own", "namespace": pool_namespace, "serviceAccountName": "own-agent"},
        ],
        "agent": {"extraRules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}]},
    }
    objects = helm.objects(values, namespace=operator_namespace)
    printed = api.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=to_be_tried(objects))
    assert len(printed.splitlines()) == len(objects)


@pytest.mark.cluster
def test_the_api_server_takes_the_chart_with_its_default_values(helm: Helm, api: ApiServer) -> None:
    """As somebody types it, without a namespace."""
    done = helm("template", RELEASE, str(CHART))
    objects = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
    printed = api.kubectl("apply", "--dry-run=server", "-f", "-", stdin=to_be_tried(objects))
    assert "agentpool.terrahalt.dev/default" in printed


@pytest.mark.cluster
def test_the_crds_chart_renders_the_crds_and_nothing_else(helm: Helm, api: ApiServer) -> None:
    done = helm("template", "crds", str(CRDS_CHART))
    assert {obj["kind"] for obj in yaml.safe_load_all(done.stdout) if obj} == {"CustomResourceDefinition"}
    api.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=done.stdout)


def test_one_install_brings_the_crds_before_the_pool_that_needs_them(helm: Helm) -> None:
    done = helm("template", RELEASE, str(CHART), "--include-crds")
    kinds = [obj["kind"] for obj in yaml.safe_load_all(done.stdout) if obj]
    assert kinds.index("AgentPool") > kinds.index("CustomResourceDefinition")
    assert "CustomResourceDefinition" not in {obj["kind"] for obj in helm.objects()}


def test_a_pool_is_what_its_values_say_and_leaves_the_rest_to_the_crd(helm: Helm) -> None:
    def spec(**values: Any) -> dict[str, Any]:
        pool = {"name": "default", "namespace": "team-a", **values}
        return dict(one(helm.objects({"pools": [pool]}), "AgentPool")["spec"])

    base = {"engine": {"type": "Terraform"}, "serviceAccountName": "terrahalt-agent"}
    assert spec() == base
    assert spec(minIdle=0) == {**base, "minIdle": 0}
    assert spec(engine="OpenTofu") == {**base, "engine": {"type": "OpenTofu"}}
    lost = {"onOperatorLoss": "Cancel", "operatorLossSeconds": 600}
    assert spec(**lost) == {**base, **lost}
    idle = {"idleTimeoutSeconds": 0, "podTemplate": {"spec": {"nodeSelector": {"pool": "tf"}}}}
    assert spec(**idle) == {**base, **idle}
    assert spec(maxAgents=3, image="a/b:1") == {**base, "maxAgents": 3, "image": "a/b:1"}
    opened = {"allowMetadata": ["169.254.169.254/32", "fd00:ec2::254/128"]}
    assert spec(**opened) == {**base, **opened}
    given = {
        "envFrom": [{"secretRef": {"name": "cloud", "optional": True}, "prefix": "TF_VAR_"}],
        "providers": {"cache": {"claimName": "providers"}},
        "maxTasksPerAgent": 5,
        "drainPolicy": "Wait",
    }
    assert spec(**given) == {**base, **given}


def test_the_secrets_to_pull_agents_images_with_are_those_of_all_pools_or_the_pools_own(helm: Helm) -> None:
    pools = [
        {"name": "default", "namespace": "team-a"},
        {"name": "own", "namespace": "team-a", "imagePullSecrets": [{"name": "own"}]},
    ]
    objects = helm.objects({"agent": {"imagePullSecrets": [{"name": "registry"}]}, "pools": pools})
    assert [pool["spec"]["imagePullSecrets"] for pool in of_kind(objects, "AgentPool")] == [
        [{"name": "registry"}],
        [{"name": "own"}],
    ]


def test_pools_of_one_namespace_share_an_account_unless_they_name_one(helm: Helm) -> None:
    pools = [
        {"name": "default", "namespace": "team-a"},
        {"name": "fast", "namespace": "team-a"},
        {"name": "own", "namespace": "team-a", "serviceAccountName": "own-agent"},
        {"name": "default", "namespace": "team-b"},
    ]
    objects = helm.objects({"pools": pools})
    found = of_kind(without_hooks(objects), "ServiceAccount")
    accounts = [(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in found]
    assert sorted(accounts) == [
        ("team-a", "own-agent"), ("team-a", "terrahalt-agent"), ("team-b", "terrahalt-agent"),
        (SYSTEM, "terrahalt-operator"),
    ]  # fmt: skip
    assert len(of_kind(objects, "AgentPool")) == 4


def test_the_default_pool_is_not_in_the_namespace_with_the_operators_keys(helm: Helm) -> None:
    objects = helm.objects()
    assert one(objects, "AgentPool")["metadata"]["namespace"] == "default"
    assert one(objects, "Deployment")["metadata"]["namespace"] == SYSTEM


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"watchNamespace": ["a"]}, ["watchNamespace", "not allowed"]),
        ({"operator": {"replicas": 0}}, ["/operator/replicas"]),
        ({"operator": {"replica": 2}}, ["/operator", "replica", "not allowed"]),
        ({"operator": {"image": {"repo": "a"}}}, ["/operator/image", "repo", "not allowed"]),
        ({"operator": {"image": {"tag": "latest"}}}, ["/operator/image/tag"]),
        ({"operator": {"image": {"tag": 1}}}, ["/operator/image/tag", "want string"]),
        ({"operator": {"image": {"reference": "a/b"}}}, ["/operator/image/reference"]),
        ({"operator": {"image": {"reference": "a/b:latest"}}}, ["/operator/image/reference"]),
        ({"operator": {"image": {"pullPolicy": "Sometimes"}}}, ["/operator/image/pullPolicy", "'IfNotPresent'"]),
        ({"operator": {"logFormat": "xml"}}, ["/operator/logFormat", "'json'"]),
        ({"operator": {"resources": {"request": {}}}}, ["/operator/resources", "request", "not allowed"]),
        ({"agent": {"image": {"reference": "a/b:latest"}}}, ["/agent/image/reference"]),
        ({"agent": {"extraRules": [{"apiGroups": [""], "resources": ["a"]}]}}, ["/agent/extraRules/0", "verbs"]),
        ({"agent": {"extraRules": [{"apiGroup": ""}]}}, ["/agent/extraRules/0", "apiGroup", "not allowed"]),
        ({"watchNamespaces": ["Team_A"]}, ["/watchNamespaces/0"]),
        ({"watchNamespaces": "team-a"}, ["/watchNamespaces", "want array"]),
        ({"claimsNamespace": "Claims"}, ["/claimsNamespace"]),
        ({"pools": [{"namespace": "a"}]}, ["/pools/0", "name"]),
        ({"pools": [{"name": "a", "namespace": "a", "minidle": 1}]}, ["/pools/0", "minidle", "not allowed"]),
        ({"pools": [{"name": "a", "namespace": "a", "engine": "Pulumi"}]}, ["/pools/0/engine", "'OpenTofu'"]),
        ({"agent": {"openTofu": {"image": {"repo": "a"}}}}, ["/agent/openTofu/image", "repo", "not allowed"]),
        ({"imageRegistry": "registry.example/"}, ["/imageRegistry"]),
        ({"agent": {"imagePullSecrets": ["registry"]}}, ["/agent/imagePullSecrets/0", "want object"]),
        ({"pools": [{"name": "a", "namespace": "a", "maxAgents": 0}]}, ["/pools/0/maxAgents"]),
        ({"pools": [{"name": "a" * 41, "namespace": "a"}]}, ["/pools/0/name"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused_with_the_place_where_they_are(
    helm: Helm, values: dict[str, Any], says: list[str]
) -> None:
    complaint = helm.complaint(values)
    assert all(text in complaint for text in says), complaint


def test_a_pool_that_the_operator_would_not_see_is_refused(helm: Helm) -> None:
    pools = [{"name": "default", "namespace": "team-c"}]
    complaint = helm.complaint({"watchNamespaces": ["team-a", "team-b"], "pools": pools})
    assert "pools[0]: the operator does not watch the namespace team-c: add it to watchNamespaces" in complaint
    assert "one of team-a, team-b" in complaint


def test_claims_are_shared_by_releases_that_serve_some_namespaces_each_and_lie_where_nobody_creates_tasks(
    helm: Helm,
) -> None:
    assert "claimsNamespace: this release serves all namespaces" in helm.complaint({"claimsNamespace": "claims"})
    watched = {"watchNamespaces": ["team-a", "claims"], "pools": []}
    complaint = helm.complaint(watched | {"claimsNamespace": "claims"})
    assert "claimsNamespace: whoever may create tasks in claims could write claims there" in complaint
    assert helm.objects(watched | {"claimsNamespace": "others"})


def test_an_opentofu_pool_without_an_image_for_it_is_refused(helm: Helm) -> None:
    without = {"agent": {"openTofu": {"image": {"repository": ""}}}}
    pool = {"name": "default", "namespace": "team-a", "engine": "OpenTofu"}
    complaint = helm.complaint({**without, "pools": [pool]})
    assert "pools[0]: there is no image for OpenTofu: set agent.openTofu.image, or the pool's image" in complaint
    assert helm.objects({**without, "pools": [pool | {"image": "a/b:1"}]})


def test_two_pools_of_one_name_are_refused(helm: Helm) -> None:
    complaint = helm.complaint({"pools": [{"name": "default", "namespace": "team-a"}] * 2})
    assert "pools[1]: there is a pool team-a/default before it" in complaint


def test_no_image_is_called_latest(helm: Helm) -> None:
    for text in (helm.rendered(), *(path.read_text() for path in (ROOT / "examples").glob("*.yaml"))):
        assert ":latest" not in text


@pytest.mark.cluster
def test_the_notes_have_a_first_task_that_the_api_server_takes(helm: Helm, api: ApiServer, pool_namespace: str) -> None:
    notes = helm.notes({"pools": [{"name": "fast", "namespace": pool_namespace}]})
    task = notes.partition("<<'TASK'\n")[2].partition("\nTASK\n")[0]
    printed = api.kubectl("create", "--dry-run=server", "--validate=strict", "-o", "yaml", "-f", "-", stdin=task)
    created = yaml.safe_load(printed)
    assert (created["metadata"]["namespace"], created["spec"]["poolRef"]["name"]) == (pool_namespace, "fast")
    name = created["metadata"]["name"]
    cancel = f"""patch terraformtask {name} --type merge -p '{{"spec":{{"cancel":true}}}}'"""
    assert f"kubectl -n {pool_namespace} {cancel}" in notes
    assert "WARNING" not in notes


def test_the_notes_warn_of_a_pool_beside_the_operators_keys(helm: Helm) -> None:
    notes = helm.notes({"pools": [{"name": "default", "namespace": SYSTEM}]})
    assert f"WARNING: the pool default is in the operator's own namespace, {SYSTEM}." in notes


def test_the_notes_say_what_releases_that_share_claims_have_to_have_in_common_and_what_not(helm: Helm) -> None:
    shared = "share the claims in namespace claims"
    assert shared not in helm.notes()
    assert shared in helm.notes({"watchNamespaces": ["team-a"], "claimsNamespace": "claims", "pools": []})


def test_the_notes_say_that_there_is_no_pool_yet(helm: Helm) -> None:
    assert "There is no pool yet" in helm.notes({"pools": []})


def test_the_notes_say_what_the_next_command_is_and_how_an_uninstall_goes(helm: Helm) -> None:
    notes = helm.notes()
    assert f"\n  helm test {RELEASE} --namespace {SYSTEM}\n" in notes
    assert "`helm uninstall` is refused" in notes
    assert "kubectl delete terraformtasks,agentpools" not in notes
    unasked = helm.notes({"uninstall": {"check": False}})
    assert "kubectl delete terraformtasks,agentpools --all --all-namespaces" in unasked
    assert "is refused" not in unasked


def test_an_upgrade_is_told_that_helm_has_left_the_crds(helm: Helm) -> None:
    command = "kubectl apply --server-side --force-conflicts -f charts/terrahalt/crds"
    assert command not in helm.notes()
    template = (CHART / "templates/NOTES.txt").read_text()
    assert command in template.partition("{{- if .Release.IsUpgrade }}")[2].partition("{{- end }}")[0]
    assert command in (ROOT / "docs/install.md").read_text()
