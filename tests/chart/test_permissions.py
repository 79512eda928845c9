"""Who may do what: the operator reads no Secret but its own, agents stay in their namespace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import yaml

from terrahalt_operator.core import names
from tests.chart.helm import SYSTEM, Helm, Objects, of_kind
from tests.crds.api_server import ROOT, ApiServer, eventually

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
OPERATOR = "terrahalt-operator"
AGENT = "terrahalt-agent"
RBAC = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")

IN_TASK_NAMESPACES = {
    ("terrahalt.dev", "terraformtasks"): {"get", "list", "watch", "patch", "delete"},
    ("terrahalt.dev", "agentpools"): {"get", "list", "watch", "patch", "delete"},
    ("terrahalt.dev", "terraformtasks/status"): {"patch"},
    ("terrahalt.dev", "agentpools/status"): {"patch"},
    ("", "pods"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods/log"): {"get"},
    ("", "secrets"): {"create"},
    ("", "configmaps"): {"get", "create", "delete"},
    ("policy", "poddisruptionbudgets"): {"list", "create", "delete"},
    ("coordination.k8s.io", "leases"): {"get"},
    ("networking.k8s.io", "networkpolicies"): {"list", "create", "patch"},
    ("events.k8s.io", "events"): {"create"},
}
IN_THE_CLUSTER = {("authentication.k8s.io", "tokenreviews"): {"create"}}
OF_CLAIMS = {("coordination.k8s.io", "leases"): {"get", "list", "create", "delete"}}
OF_AN_AGENT = {
    ("", "secrets"): {"get", "list", "create", "update", "patch", "delete"},
    ("coordination.k8s.io", "leases"): {"get", "create", "update", "patch"},
    ("", "configmaps"): {"get"},
}

Rules = dict[tuple[str, str], set[str]]


def rules_of(role: Mapping[str, Any]) -> Rules:
    found: Rules = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                name = "".join(f"={name}" for name in rule.get("resourceNames", []))
                found.setdefault((group, resource + name), set()).update(rule["verbs"])
    return found


def named(objects: Objects, kind: str, namespace: str, name: str) -> dict[str, Any]:
    (found,) = [
        obj
        for obj in of_kind(objects, kind)
        if (obj["metadata"].get("namespace", ""), obj["metadata"]["name"]) == (namespace, name)
    ]
    return found


def granted(objects: Objects) -> list[tuple[str, str, str]]:
    """Each role, by its kind, namespace and name, to whom it is bound; nothing is bound that is not there."""
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        namespace = binding["metadata"].get("namespace", "")
        named(objects, binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"])
    return [
        (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        for obj in of_kind(objects, "Role", "ClusterRole")
    ]


def test_the_operator_of_the_whole_cluster_has_exactly_these_permissions(helm: Helm) -> None:
    objects = helm.objects()
    assert sorted(granted(objects)) == [
        ("ClusterRole", "", f"{SYSTEM}:{OPERATOR}"),
        ("Role", "default", AGENT),
        ("Role", SYSTEM, OPERATOR),
        ("Role", SYSTEM, f"{OPERATOR}-test"),
    ]
    assert rules_of(named(objects, "Role", SYSTEM, f"{OPERATOR}-test")) == {
        ("apps", f"deployments={OPERATOR}"): {"get"}
    }
    assert rules_of(named(objects, "ClusterRole", "", f"{SYSTEM}:{OPERATOR}")) == {
        **IN_TASK_NAMESPACES,
        **IN_THE_CLUSTER,
    }
    assert rules_of(named(objects, "Role", SYSTEM, OPERATOR)) == {
        ("coordination.k8s.io", "leases"): set(VERBS) - {"update", "deletecollection"},
        ("", f"secrets={names.TRUST_SECRET}"): {"get"},
        ("", "secrets"): {"create"},
    }


def test_the_operator_of_some_namespaces_has_nothing_in_the_others(helm: Helm) -> None:
    objects = helm.objects({"watchNamespaces": ["team-a", "team-b"], "pools": []})
    assert sorted(granted(objects)) == [
        ("ClusterRole", "", f"{SYSTEM}:{OPERATOR}"),
        ("Role", "team-a", f"{OPERATOR}-tasks"),
        ("Role", "team-b", f"{OPERATOR}-tasks"),
        ("Role", SYSTEM, OPERATOR),
        ("Role", SYSTEM, f"{OPERATOR}-test"),
    ]
    assert rules_of(named(objects, "ClusterRole", "", f"{SYSTEM}:{OPERATOR}")) == IN_THE_CLUSTER
    for namespace in ("team-a", "team-b"):
        assert rules_of(named(objects, "Role", namespace, f"{OPERATOR}-tasks")) == IN_TASK_NAMESPACES


def test_where_claims_are_shared_the_operator_has_what_they_need_there_and_no_more_of_leases_at_home_than_who_leads(
    helm: Helm,
) -> None:
    values = {"watchNamespaces": ["team-a"], "claimsNamespace": "claims", "pools": []}
    objects = helm.objects(values)
    name = f"{SYSTEM}:{OPERATOR}-claims"
    assert sorted(granted(objects)) == [
        ("ClusterRole", "", f"{SYSTEM}:{OPERATOR}"),
        ("Role", "claims", name),
        ("Role", "team-a", f"{OPERATOR}-tasks"),
        ("Role", SYSTEM, OPERATOR),
        ("Role", SYSTEM, f"{OPERATOR}-test"),
    ]
    assert rules_of(named(objects, "Role", "claims", name)) == OF_CLAIMS
    account = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": SYSTEM}
    assert named(objects, "RoleBinding", "claims", name)["subjects"] == [account]
    leader = rules_of(named(objects, "Role", SYSTEM, OPERATOR))["coordination.k8s.io", "leases"]
    assert leader == {"list", "watch", "create", "patch"}
    at_home = helm.objects(values | {"claimsNamespace": SYSTEM})
    both = rules_of(named(at_home, "Role", SYSTEM, OPERATOR))["coordination.k8s.io", "leases"]
    assert both == leader | OF_CLAIMS["coordination.k8s.io", "leases"]
    assert not any(name.endswith("-claims") for _, _, name in granted(at_home))


def test_what_the_operator_may_do_with_shared_claims_is_what_the_documentation_says() -> None:
    written = documented("The operator, where `claimsNamespace` has the claims of several installations:")
    assert written == {"leases.coordination.k8s.io": OF_CLAIMS["coordination.k8s.io", "leases"]}


def test_an_agent_may_keep_its_state_and_read_what_tasks_refer_to(helm: Helm) -> None:
    assert rules_of(named(helm.objects(), "Role", "default", AGENT)) == OF_AN_AGENT


def test_extra_rules_are_added_to_the_agents_of_every_pool(helm: Helm) -> None:
    extra = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create", "delete"]}
    pools = [{"name": "default", "namespace": "team-a"}, {"name": "default", "namespace": "team-b"}]
    objects = helm.objects({"agent": {"extraRules": [extra]}, "pools": pools})
    for namespace in ("team-a", "team-b"):
        rules = rules_of(named(objects, "Role", namespace, AGENT))
        assert rules == {**OF_AN_AGENT, ("apps", "deployments"): {"create", "delete"}}
    assert "deployments" not in str(rules_of(named(objects, "ClusterRole", "", f"{SYSTEM}:{OPERATOR}")))


@pytest.fixture(scope="module")
def _installed(helm: Helm, api: ApiServer, operator_namespace: str, pool_namespace: str) -> Iterator[None]:
    """The permissions alone, really installed."""
    values = {"pools": [{"name": "default", "namespace": pool_namespace}]}
    objects = yaml.safe_dump_all(of_kind(helm.objects(values, namespace=operator_namespace), *RBAC))
    try:
        api.kubectl("apply", "-f", "-", stdin=objects)
        yield
    finally:
        api.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=objects)


def may(
    api: ApiServer, who: str, verb: str, resource: str, namespace: str = "", name: str = "", group: str = ""
) -> bool:
    """The authorizer's own answer; `who` is namespace:account, without a namespace it is about all of them."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{who}",
            "resourceAttributes": {
                "verb": verb, "resource": resource, "namespace": namespace, "name": name, "group": group,
            },
        },
    }  # fmt: skip
    answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer.body["status"]["allowed"])


@pytest.mark.cluster
@pytest.mark.usefixtures("_installed")
def test_the_operator_may_read_no_secret_but_its_own(
    api: ApiServer, operator_namespace: str, pool_namespace: str
) -> None:
    operator = f"{operator_namespace}:{OPERATOR}"
    # New permissions take a moment to be known; without this, everything below would be refused anyway.
    assert eventually(partial(may, api, operator, "get", "secrets", operator_namespace, names.TRUST_SECRET), bool)
    assert eventually(lambda: may(api, operator, "list", "pods"), bool)
    for verb in set(VERBS) - {"create"}:  # which shows nothing, and changes none that is there
        assert not may(api, operator, verb, "secrets"), f"{verb} of Secrets in the whole cluster"
        assert not may(api, operator, verb, "secrets", pool_namespace), f"{verb} of Secrets where tasks live"
        assert not may(api, operator, verb, "secrets", "kube-system", "any"), f"{verb} of Secrets elsewhere"
        assert not may(api, operator, verb, "secrets", operator_namespace, "another"), f"{verb} of another Secret"


@pytest.mark.cluster
@pytest.mark.usefixtures("_installed")
def test_the_operator_may_not_raise_its_own_permissions(api: ApiServer, operator_namespace: str) -> None:
    operator = f"{operator_namespace}:{OPERATOR}"
    assert eventually(lambda: may(api, operator, "patch", "terraformtasks", "default", group="terrahalt.dev"), bool)
    for verb in ("create", "update", "patch", "bind", "escalate"):
        for resource in ("roles", "clusterroles", "rolebindings", "clusterrolebindings"):
            assert not may(api, operator, verb, resource, operator_namespace, group="rbac.authorization.k8s.io")
    assert not may(api, operator, "impersonate", "serviceaccounts", operator_namespace)
    assert not may(api, operator, "create", "pods/exec", operator_namespace)


@pytest.mark.cluster
@pytest.mark.usefixtures("_installed")
def test_an_agent_may_do_nothing_outside_its_namespace_and_nothing_to_tasks(
    api: ApiServer, operator_namespace: str, pool_namespace: str
) -> None:
    agent = f"{pool_namespace}:{AGENT}"
    assert eventually(lambda: may(api, agent, "get", "secrets", pool_namespace, "any"), bool)
    for verb in VERBS:
        for group, resource in (("", "secrets"), ("", "configmaps"), ("coordination.k8s.io", "leases")):
            assert not may(api, agent, verb, resource, operator_namespace, group=group)
            assert not may(api, agent, verb, resource, group=group)
        for resource in ("terraformtasks", "agentpools"):
            assert not may(api, agent, verb, resource, pool_namespace, group="terrahalt.dev")
        assert not may(api, agent, verb, "pods", pool_namespace)


def listed(api: ApiServer, who: str, namespace: str) -> dict[str, set[str]]:
    """What `kubectl auth can-i --list` says of this account and of no other: resource and names -> verbs."""

    def lines(account: str) -> set[str]:
        user = f"--as=system:serviceaccount:{account}"
        printed = api.kubectl("auth", "can-i", "--list", "--no-headers", "--namespace", namespace, user)
        return {" ".join(line.split()) for line in printed.splitlines()}

    return read(lines(who) - lines(f"{who.partition(':')[0]}:nobody"))


def read(lines: set[str]) -> dict[str, set[str]]:
    """A list without URLs, or with an empty one as kubectl prints it."""
    found: dict[str, set[str]] = {}
    for line in lines:
        match = re.fullmatch(r"(\S+)(?: \[\])? \[(\S*)\] \[([a-z ]+)\]", line)
        assert match, line
        found.setdefault(f"{match[1]} {match[2]}".strip(), set()).update(match[3].split())
    return found


def documented(heading: str) -> dict[str, set[str]]:
    text = (ROOT / "docs/security.md").read_text()
    block = text.partition(f"{heading}\n\n```\n")[2].partition("```")[0]
    return read({" ".join(line.split()) for line in block.splitlines()})


@pytest.mark.cluster
@pytest.mark.usefixtures("_installed")
def test_what_the_accounts_may_do_is_what_the_documentation_says_and_not_one_verb_more(
    api: ApiServer, operator_namespace: str, pool_namespace: str
) -> None:
    operator, agent = f"{operator_namespace}:{OPERATOR}", f"{pool_namespace}:{AGENT}"
    for who, where, heading in (
        (operator, operator_namespace, "The operator, in its own namespace:"),
        (operator, pool_namespace, "The operator, where tasks live:"),
        (agent, pool_namespace, "An agent, in its pool's namespace:"),
    ):
        written = documented(heading)
        assert written
        assert eventually(partial(listed, api, who, where), written.__eq__) == written, heading
    assert listed(api, agent, operator_namespace) == {}
    assert listed(api, agent, "kube-system") == {}
