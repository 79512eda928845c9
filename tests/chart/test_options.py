"""The options as a whole: each is described, commented and read; and any two of them go together."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from kubernetes.aio import client

from terrahalt_operator.api.pool import AgentPoolSpec
from tests.chart import options, shapes
from tests.chart.helm import CHART, HOOK, Helm, of_kind, one
from tests.chart.options import NEEDS, OPTIONS
from tests.chart.pairs import missing, pairwise
from tests.crds.api_server import ROOT

TEXT = (CHART / "values.yaml").read_text()
TEMPLATES = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
POOL: dict[str, Any] = options.schema()["properties"]["pools"]["items"]["properties"]
LEVELS = {name: 1 + len(values) for name, values in OPTIONS.items()}
CHOICES = pairwise(LEVELS)
ITS_OWN = {"serviceAccountAnnotations", "name", "namespace"}
"""What a pool has in the values and not in its spec."""


def commented() -> dict[str, str]:
    """Each key of values.yaml by its path -> the comment right above it."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    comment = ""
    for line in TEXT.partition("\npools:\n")[0].splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment += text.lstrip("# ")
        elif match := re.match(r"( *)(\w+):", line):
            above = [*(pair for pair in above if pair[0] < len(match[1])), (len(match[1]), match[2])]
            found[".".join(name for _, name in above)] = comment
            comment = ""
        else:
            comment = ""
    # That of the pools is above a blank comment line too.
    found["pools"] = TEXT.partition("\npools:\n")[0].rpartition("\n\n")[2]
    return found


def test_schema_values_and_tests_know_the_same_options() -> None:
    def given(values: Any, path: str = "") -> set[str]:
        if not isinstance(values, dict) or path.removesuffix(".") in options.described():
            return {path.removesuffix(".")}
        return {deeper for name, below in values.items() for deeper in given(below, f"{path}{name}.")}

    assert given(options.default_values()) == set(options.described()) == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_has_a_comment_in_the_values_and_a_description_in_the_schema(option: str) -> None:
    assert len(commented()[option]) > 10, f"values.yaml has no comment right above {option}"
    assert len(options.described()[option].get("description", "")) > 10


def test_the_templates_read_no_option_that_is_not_described() -> None:
    read = set(re.findall(r"\.Values\.([\w.]+)", TEMPLATES)) | {
        f"metrics.{name}" for name in re.findall(r"\$metrics\.([\w.]+)", TEMPLATES)
    }
    known = set(OPTIONS) | {name[: dot.start()] for name in OPTIONS for dot in re.finditer(r"\.", name)}
    assert len(read) > 20
    assert read <= known


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_what_is_rendered(helm: Helm, option: str) -> None:
    needed = NEEDS.get(option, {})
    before = helm.rendered(options.nested(needed))
    for value in OPTIONS[option]:
        assert helm.rendered(options.nested({**needed, option: value})) != before, value


def test_a_pool_may_have_in_the_values_what_its_kind_has_within_the_same_bounds() -> None:
    crd = yaml.safe_load((CHART / "crds/agentpools.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(POOL) - ITS_OWN == set(spec)
    for name in set(POOL) - ITS_OWN - {"engine"}:
        for bound in ("minimum", "maximum", "enum", "minItems"):
            if bound in POOL[name] or POOL[name].get("type") == "integer":
                assert POOL[name].get(bound) == spec[name].get(bound), f"{name}.{bound}"
    assert POOL["engine"]["enum"] == spec["engine"]["properties"]["type"]["enum"]


@pytest.mark.parametrize("field", POOL)
def test_each_field_of_a_pool_is_explained_in_the_values_and_tried(field: str) -> None:
    assert re.search(rf"^ +# {field}: .{{8,}}", TEXT.partition("\npools:\n")[2], re.MULTILINE)
    assert field in options.POOLS[1]
    assert POOL[field].get("description") or "$ref" in POOL[field]


def test_all_that_a_pool_says_is_in_its_spec_or_on_its_account(helm: Helm) -> None:
    said = options.POOLS[1]
    values = {
        "pools": [said],
        "agent": {"serviceAccountAnnotations": {"example.com/role": "no", "example.com/all": "x"}},
    }
    objects = helm.objects(values)
    spec = one(objects, "AgentPool")["spec"]
    assert spec == {name: said[name] for name in set(POOL) - ITS_OWN} | {"engine": {"type": said["engine"]}}
    (account,) = [obj for obj in of_kind(objects, "ServiceAccount") if obj["metadata"]["name"] == "own-agent"]
    assert account["metadata"]["annotations"] == {"example.com/role": "writer", "example.com/all": "x"}


def test_any_two_options_meet_in_few_choices() -> None:
    assert missing(CHOICES, LEVELS) == set()
    assert missing(CHOICES[: len(CHOICES) // 2], LEVELS), "half of them would do"
    assert len(CHOICES) < 40


def values_of(choice: dict[str, int]) -> dict[str, Any]:
    chosen = {name: OPTIONS[name][level - 1] for name, level in choice.items() if level}
    if "metrics.podMonitors.agents" in chosen and "metrics.podMonitors.enabled" in chosen:
        chosen["metrics.agentsFrom"] = options.SCRAPER
    if "claimsNamespace" in chosen:
        chosen.setdefault("watchNamespaces", NEEDS["claimsNamespace"]["watchNamespaces"])
    if "watchNamespaces" in chosen and "pools" not in chosen:
        chosen["pools"] = options.POOLS
    return options.nested(chosen)


@pytest.mark.parametrize("choice", CHOICES, ids=range(len(CHOICES)))
def test_whatever_is_chosen_makes_objects_that_kubernetes_and_our_kinds_know(
    helm: Helm, choice: dict[str, int]
) -> None:
    objects = helm.objects(values_of(choice))
    identities = [(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in objects]
    assert len(set(identities)) == len(identities) > 8
    for obj in objects:
        labels, annotations = obj["metadata"]["labels"], obj["metadata"].get("annotations", {})
        assert labels["app.kubernetes.io/part-of"] == "terrahalt"
        assert "ours-wins" not in labels.values()
        assert (labels.get("team") == "platform") is bool(choice["commonLabels"])
        assert (annotations.get("example.com/contact") == "platform") is bool(choice["commonAnnotations"])
        if obj["kind"] == "AgentPool":
            AgentPoolSpec.model_validate(obj["spec"])
            assert set(obj["spec"]) <= set(POOL) - ITS_OWN
        elif not obj["apiVersion"].startswith("monitoring.coreos.com/"):
            assert shapes.faults(obj) == []
    assert all(hasattr(client, f"V1{obj['kind']}") for obj in objects if HOOK in obj["metadata"].get("annotations", {}))


def test_an_unknown_field_and_a_wrong_type_are_faults(helm: Helm) -> None:
    (deployment,) = [obj for obj in helm.objects() if obj["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    deployment["spec"]["replicas"] = "2"
    deployment["metadata"]["labels"]["count"] = 1
    assert shapes.faults(deployment) == [
        "Deployment.metadata.labels.count: 1 is no str",
        "Deployment.spec.replicas: '2' is no int",
        "Deployment.spec.template.spec.containers[0].enviroment: V1Container has no such field",
    ]


def test_pools_that_share_an_account_must_agree_on_its_annotations(helm: Helm) -> None:
    def pools(*roles: str | None) -> dict[str, Any]:
        made = [
            {"name": f"pool-{number}", "namespace": "team-a"}
            | ({"serviceAccountAnnotations": {"example.com/role": role}} if role else {})
            for number, role in enumerate(roles)
        ]
        return {"pools": made}

    assert helm.objects(pools("a", "a"))
    for roles in (("a", "b"), ("a", None), (None, "a")):
        complaint = helm.complaint(pools(*roles))
        assert (
            "pools[1]: a pool before it gives the ServiceAccount team-a/terrahalt-agent other annotations" in complaint
        )


def test_what_the_chart_refers_to_in_the_documentation_is_there() -> None:
    for named in set(re.findall(r"docs/\w+\.md", TEXT + TEMPLATES)):
        assert (ROOT / named).is_file(), named
