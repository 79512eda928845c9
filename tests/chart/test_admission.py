"""The admission policies on the real API server: each verb by a role that has it and by those that have not.

Every change is a dry run, which admission judges like any other. The policies are bound to a namespace
of these tests alone, as those of an installation with `watchNamespaces` are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import yaml

from tests.chart.helm import Helm, of_kind, one, without_hooks
from tests.crds.api_server import ROOT, Answer, ApiServer, a_pool, a_task, eventually, path_of

pytestmark = pytest.mark.cluster

ADMIN, OPERATOR = "the administrator", "the operator"
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
RBAC = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")
TASK_FINALIZER, AGENT_FINALIZER, POOL_FINALIZER = "terrahalt.dev/task", "terrahalt.dev/agent", "terrahalt.dev/pool"
ANOTHERS = "example.com/another"


def on_tasks(*verbs: str, **limits: Any) -> list[dict[str, Any]]:
    return [{"apiGroups": ["terrahalt.dev"], "resources": ["terraformtasks"], "verbs": ["patch", *verbs], **limits}]


def on_pools() -> list[dict[str, Any]]:
    resources = ["agentpools", "agentpools/scale"]
    return [{"apiGroups": ["terrahalt.dev"], "resources": resources, "verbs": ["create", "get", "patch"]}]


def of_example(name: str, file: str = "roles") -> list[dict[str, Any]]:
    roles = yaml.safe_load_all((ROOT / f"examples/{file}.yaml").read_text())
    (rules,) = [obj["rules"] for obj in roles if obj["kind"] == "Role" and obj["metadata"]["name"] == name]
    return list(rules)


ROLES: dict[str, list[dict[str, Any]]] = {
    "creator": on_tasks("create"),
    "canceller": of_example("task-canceller"),
    "canceller-of-one": on_tasks("cancel", resourceNames=["running"]) + on_tasks(),
    "approver": of_example("task-approver", "approval")[:1],
    "only-approver": on_tasks("approve"),
    "abandoner": on_tasks("abandon"),
    "patcher": on_tasks(),
    "rescuer": of_example("task-rescuer"),
    "caretaker": [
        {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["patch"]},
        {
            "apiGroups": ["terrahalt.dev"],
            "resources": ["terraformtasks/status", "agentpools/status"],
            "verbs": ["patch"],
        },
    ],
    "pool-writer": on_pools(),
    "pod-maker": [*on_pools(), {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}],
}
"""ServiceAccount -> what its Role allows; each may send the request, and differs in the made-up verbs."""

STAMP = {"terrahalt.dev/uid": "its-own", "team": "a"}


def as_held(obj: dict[str, Any], *finalizers: str) -> dict[str, Any]:
    obj["metadata"] |= {"finalizers": list(finalizers), "annotations": STAMP, "labels": {"team": "a"}}
    return obj


RUNNING = as_held(a_task("running"), TASK_FINALIZER, ANOTHERS)
CANCELLED = as_held(a_task("cancelled", cancel=True), TASK_FINALIZER)
DIGEST = "sha256:" + "0" * 64
PLANNED = as_held(a_task("planned", approval="Manual"), TASK_FINALIZER)
"""Its plan waits for approval, once the fixture has written so."""
VALUED = as_held(
    a_task("valued", variables={"zone": "a"}, backend={"type": "s3", "config": {"bucket": "states", "key": "network"}}),
    TASK_FINALIZER,
)
POOL = a_pool("pool")
POD_SPEC = {
    # Never scheduled: nobody but the tests writes it.
    "schedulingGates": [{"name": "example.com/never"}],
    "containers": [{"name": "agent", "image": "agent:none"}],
}
AGENT = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "agent", "finalizers": [AGENT_FINALIZER, ANOTHERS]},
    "spec": POD_SPEC,
}
OBJECTS = (RUNNING, CANCELLED, PLANNED, VALUED, POOL, AGENT)

CANCELLERS = {ADMIN, "creator", "canceller", "canceller-of-one", "approver", "rescuer"}
APPROVERS = {ADMIN, "approver", "only-approver"}
POOL_WRITERS = {ADMIN, "pool-writer", "pod-maker"}
EVERYONE = {ADMIN, *ROLES} - {"caretaker"} - (POOL_WRITERS - {ADMIN})


@dataclass(frozen=True)
class Change:
    name: str
    obj: Mapping[str, Any]
    patch: Mapping[str, Any]
    allowed: set[str]
    says: str = ""
    """To those who may not."""
    tried_by: set[str] = field(default_factory=lambda: set(EVERYONE))
    subresource: str = ""


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def meta(**fields: Any) -> dict[str, Any]:
    return {"metadata": fields}


PODS = {ADMIN, OPERATOR, "caretaker"}
ONLY_FIELDS = "only spec.cancel, spec.cancelMode, spec.cancelGraceSeconds and spec.approvedPlanDigest can be changed"
STAMPED = "the annotation terrahalt.dev/uid tells this task from a restored copy of it"
FIXED = "variables and backend can't be changed: a task runs once"
MAKES_PODS = "its writer needs the verb create on pods"
CHANGES = (
    Change("cancel", RUNNING, spec(cancel=True), CANCELLERS, "needs the verb cancel"),
    Change("force", RUNNING, spec(cancel=True, cancelMode="Force"), CANCELLERS, "needs the verb cancel"),
    Change("raise the mode", RUNNING, spec(cancelMode="Force"), CANCELLERS, "needs the verb cancel"),
    Change("shorten the grace", RUNNING, spec(cancelGraceSeconds=1), CANCELLERS, "needs the verb cancel"),
    Change(
        "hurry another's cancel", CANCELLED, spec(cancelMode="Force"), CANCELLERS - {"canceller-of-one"},
        "needs the verb cancel",
    ),
    Change(
        "cancel and abandon", RUNNING, spec(cancel=True, cancelMode="Abandon"), {ADMIN, "rescuer"},
        "needs the verb ",
    ),
    Change("abandon", CANCELLED, spec(cancelMode="Abandon"), {ADMIN, "rescuer", "abandoner"}, "needs the verb abandon"),
    Change("approve", PLANNED, spec(approvedPlanDigest=DIGEST), APPROVERS, "needs the verb approve"),
    Change(
        "approve and cancel", PLANNED, spec(approvedPlanDigest=DIGEST, cancel=True), {ADMIN, "approver"},
        "needs the verb ",
    ),
    Change(
        "approve and relabel", PLANNED, {**spec(approvedPlanDigest=DIGEST), **meta(labels={"team": "b"})}, {ADMIN},
        "", tried_by={ADMIN, "approver", "only-approver", "creator"},
    ),
    Change("label", RUNNING, meta(labels={"team": "b"}), {ADMIN, "creator"}, ONLY_FIELDS),
    Change("annotate", RUNNING, meta(annotations={"team": None}), {ADMIN, "creator"}, ONLY_FIELDS),
    Change("change what runs", RUNNING, spec(workspace="other"), set()),
    Change(
        "rename a variable", VALUED, spec(variables={"zone": None, "region": "a"}), set(), FIXED,
        tried_by={ADMIN, "creator"},
    ),
    Change(
        "rename a setting of the backend", VALUED, spec(backend={"config": {"key": None, "path": "network"}}), set(),
        FIXED, tried_by={ADMIN, "creator"},
    ),
    Change("pass through", RUNNING, spec(workspace="network"), EVERYONE),
    Change("take off another's finalizer", RUNNING, meta(finalizers=[TASK_FINALIZER]), EVERYONE),
    Change(
        "take off the task's finalizer", RUNNING, meta(finalizers=[ANOTHERS]), {ADMIN, OPERATOR, "rescuer"},
        "delete or cancel the task and wait", tried_by={*EVERYONE, OPERATOR},
    ),
    Change(
        "take off all finalizers", RUNNING, meta(finalizers=None), {ADMIN, OPERATOR, "rescuer"},
        "delete or cancel the task and wait", tried_by={*EVERYONE, OPERATOR},
    ),
    Change(
        "change the stamp", RUNNING, meta(annotations={"terrahalt.dev/uid": "of-another"}), {OPERATOR}, STAMPED,
        tried_by={ADMIN, "creator", OPERATOR},
    ),
    Change(
        "take the stamp away", RUNNING, meta(annotations={"terrahalt.dev/uid": None}), {OPERATOR}, STAMPED,
        tried_by={ADMIN, "creator", OPERATOR},
    ),
    Change(
        "write a task's status", RUNNING, {"status": {"phase": "Cancelled"}}, {OPERATOR}, "only the operator (",
        tried_by=PODS, subresource="/status",
    ),
    Change(
        "write a pool's status", POOL, {"status": {"idle": 7}}, {OPERATOR}, "only the operator (",
        tried_by=PODS, subresource="/status",
    ),
    Change("label an agent", AGENT, meta(labels={"team": "b"}), {*PODS, "rescuer"}, tried_by={*PODS, "rescuer"}),
    Change(
        "take off a finalizer beside the agent's", AGENT, meta(finalizers=[AGENT_FINALIZER]), {*PODS, "rescuer"},
        tried_by={*PODS, "rescuer"},
    ),
    Change(
        "take off the agent's finalizer", AGENT, meta(finalizers=[ANOTHERS]), {ADMIN, OPERATOR, "rescuer"},
        "delete the pod and wait", tried_by={*PODS, "rescuer"},
    ),
    Change(
        "take off all of an agent's finalizers", AGENT, meta(finalizers=None), {ADMIN, OPERATOR, "rescuer"},
        "delete the pod and wait", tried_by={*PODS, "rescuer"},
    ),
    Change(
        "take off the agent's finalizer with its status", AGENT, meta(finalizers=[ANOTHERS]), {ADMIN},
        "delete the pod and wait", tried_by={ADMIN, "caretaker"}, subresource="/status",
    ),
    Change(
        "give a pool another image", POOL, spec(image="another"), {ADMIN, "pod-maker"}, MAKES_PODS,
        tried_by=POOL_WRITERS,
    ),
    Change("label a pool", POOL, meta(labels={"team": "b"}), POOL_WRITERS, tried_by=POOL_WRITERS),
    Change(
        "let a pool's deletion wait for its runs", POOL, meta(finalizers=[POOL_FINALIZER]), {*POOL_WRITERS, OPERATOR},
        tried_by={*POOL_WRITERS, OPERATOR},
    ),
    Change("scale a pool", POOL, spec(replicas=2), POOL_WRITERS, tried_by=POOL_WRITERS, subresource="/scale"),
)  # fmt: skip


@dataclass(frozen=True)
class Guarded:
    """A namespace in which the policies hold."""

    api: ApiServer
    namespace: str
    operator: str

    def user(self, who: str) -> str:
        if who == ADMIN:
            return ""
        return self.operator if who == OPERATOR else f"system:serviceaccount:{self.namespace}:{who}"

    def attempt(self, change: Change, who: str) -> Answer:
        return self.api.patch(
            change.obj, self.namespace, change.patch, subresource=change.subresource, who=self.user(who)
        )


@pytest.fixture(scope="module")
def guarded(helm: Helm, api: ApiServer, operator_namespace: str) -> Iterator[Guarded]:
    ours = ["--selector=app.kubernetes.io/part-of=terrahalt", "--output=name"]
    bound = api.kubectl("get", "validatingadmissionpolicybindings", *ours)
    assert not bound, f"an installation guards this cluster already, and would answer too: uninstall it\n{bound}"
    with api.namespace("chart-admission") as namespace:
        values = {"watchNamespaces": [namespace], "pools": []}
        rendered = without_hooks(helm.objects(values, namespace=operator_namespace))
        installed = of_kind(rendered, *RBAC, *POLICIES)
        account = one(rendered, "ServiceAccount")["metadata"]
        here = Guarded(api, namespace, f"system:serviceaccount:{account['namespace']}:{account['name']}")
        for name, rules in ROLES.items():
            installed += role(namespace, name, rules)
        everything = yaml.safe_dump_all(installed)
        try:
            for obj in OBJECTS:
                # A pod needs its namespace's service account, which a controller makes a moment later.
                answer = eventually(partial(api.create, obj, namespace, for_real=True), lambda got: got.is_accepted)
                assert answer.is_accepted, answer.body
            plan = {"status": {"plan": {"digest": DIGEST}}}
            assert api.patch(PLANNED, namespace, plan, subresource="/status", for_real=True).is_accepted
            api.kubectl("apply", "-f", "-", stdin=everything)
            wait_until_they_hold(here)
            yield here
        finally:
            api.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=everything)
            for obj in OBJECTS:
                gone = partial(api.patch, obj, namespace, {"metadata": {"finalizers": None}}, for_real=True)
                assert eventually(gone, lambda answer: answer.is_accepted or answer.code == 404).code in (200, 404)


def role(namespace: str, name: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    named = {"name": name, "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": named, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", **named}],
        },
    ]


def wait_until_they_hold(here: Guarded) -> None:
    """A new role and a new policy are known to the API server some moments after it has them."""
    by_name = {change.name: change for change in CHANGES}
    known = [("label an agent", who) for who in PODS] + [("pass through", who) for who in EVERYONE]
    known += [("label a pool", who) for who in POOL_WRITERS]
    for name, who in known:
        assert eventually(partial(here.attempt, by_name[name], who), lambda a: a.is_accepted).is_accepted, (name, who)
    for name in ("change the stamp", "write a pool's status"):
        assert not eventually(partial(here.attempt, by_name[name], ADMIN), lambda a: not a.is_accepted).is_accepted
    assert eventually(partial(attempt_to_make_a_pool, here, "pod-maker"), lambda a: a.is_accepted).is_accepted
    assert not eventually(partial(attempt_to_make_a_pool, here, "pool-writer"), lambda a: not a.is_accepted).is_accepted
    taken_off = by_name["take off the agent's finalizer"]
    assert not eventually(partial(here.attempt, taken_off, "caretaker"), lambda a: not a.is_accepted).is_accepted


def attempt_to_make_a_pool(here: Guarded, who: str) -> Answer:
    path = f"{path_of('AgentPool', here.namespace)}?dryRun=All"
    return here.api.request("POST", path, a_pool("another"), who=here.user(who))


@pytest.mark.parametrize("who", sorted(POOL_WRITERS))
def test_only_who_may_make_pods_may_make_a_pool(guarded: Guarded, who: str) -> None:
    answer = attempt_to_make_a_pool(guarded, who)
    if who == "pool-writer":
        assert MAKES_PODS in answer.body["message"]
    else:
        assert answer.is_accepted, answer.body["message"]


ATTEMPTS = [
    pytest.param(change, who, id=f"{who}: {change.name}") for change in CHANGES for who in sorted(change.tried_by)
]


@pytest.mark.parametrize(("change", "who"), ATTEMPTS)
def test_who_has_the_verb_may_and_who_has_not_is_told_what_to_do(guarded: Guarded, change: Change, who: str) -> None:
    answer = guarded.attempt(change, who)
    if who in change.allowed:
        assert answer.is_accepted, answer.body["message"]
    else:
        assert not answer.is_accepted
        assert "cannot patch resource" not in answer.body["message"], "RBAC refused it, so this tries nothing"
        assert change.says in answer.body["message"]


def test_a_plain_pod_of_the_namespace_is_nobodys_business(guarded: Guarded) -> None:
    plain = {**AGENT, "metadata": {"name": "plain", "finalizers": [ANOTHERS]}}
    assert guarded.api.create(plain, guarded.namespace, for_real=True).is_accepted
    taken_off = guarded.api.patch(
        plain, guarded.namespace, meta(finalizers=None), who=guarded.user("caretaker"), for_real=True
    )
    assert taken_off.is_accepted, taken_off.body


def test_another_namespace_is_another_installations_business(guarded: Guarded, namespace_of_others: str) -> None:
    task = as_held(a_task("theirs"), ANOTHERS)
    assert guarded.api.create(task, namespace_of_others, for_real=True).is_accepted
    answer = guarded.api.patch(task, namespace_of_others, {"status": {"phase": "Queued"}}, subresource="/status")
    assert answer.is_accepted, answer.body


@pytest.fixture
def namespace_of_others(api: ApiServer) -> Iterator[str]:
    with api.namespace("chart-others") as name:
        yield name


def test_the_api_server_finds_nothing_wrong_with_the_expressions(guarded: Guarded) -> None:
    """What it can check against the schemas of the kinds, it writes into the policies' status."""
    ours = guarded.operator.split(":")[2]

    def installed() -> list[dict[str, Any]]:
        path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
        items = guarded.api.request("GET", path).body["items"]
        return [policy for policy in items if ours in policy["metadata"]["name"]]

    def is_checked(policy: dict[str, Any]) -> bool:
        observed = policy.get("status", {}).get("observedGeneration")
        return bool(observed == policy["metadata"]["generation"])

    policies = eventually(installed, lambda found: all(map(is_checked, found)))
    assert len(policies) == 4
    for policy in policies:
        assert is_checked(policy)
        assert policy["status"].get("typeChecking", {}).get("expressionWarnings", []) == []


def test_the_role_of_the_documentation_is_the_one_that_was_tried() -> None:
    text = (ROOT / "docs/security.md").read_text()
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert shown["rules"] == ROLES["canceller"]


def test_they_can_be_switched_off_and_an_old_cluster_is_told_to(helm: Helm) -> None:
    off = helm.objects({"admissionPolicies": {"enabled": False}})
    assert of_kind(off, *POLICIES) == []
    on = helm.objects()
    assert len(of_kind(on, *POLICIES)) == 8
    assert [obj for obj in on if obj["kind"] not in POLICIES] == off
    old = helm("template", "terrahalt", str(ROOT / "charts/terrahalt"), "--kube-version", "1.29.4")
    assert "set admissionPolicies.enabled to false" in old.stderr


def test_only_what_agents_do_not_depend_on_is_refused_where_it_can_not_be_judged(helm: Helm) -> None:
    policies = of_kind(helm.objects(), POLICIES[0])
    on_error = {policy["metadata"]["name"].split(".")[0]: policy["spec"]["failurePolicy"] for policy in policies}
    assert on_error == {"tasks": "Fail", "status": "Fail", "agents": "Ignore", "pools": "Fail"}
