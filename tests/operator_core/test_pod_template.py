"""What a pool's podTemplate makes of the agents' pods."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from terrahalt_operator.core import names, pod, pod_template
from tests.operator_core import builders as b

Json = dict[str, Any]

SAFE = pod.agent_pod(b.a_pool(), image="agent:1", operator_ca="CA", anchor_uid="anchor")


def made_by(template: Json, **pool: Any) -> Json:
    wanted = b.a_pool(pod_template=template, **pool)
    return pod.agent_pod(wanted, image="agent:1", operator_ca="CA", anchor_uid="anchor")


def spec_with(**spec: Any) -> Json:
    made: Json = made_by({"spec": spec})["spec"]
    return made


def agent_with(**container: Any) -> Json:
    (agent,) = spec_with(containers=[{"name": "agent", **container}])["containers"]
    return dict(agent)


SAFE_AGENT = SAFE["spec"]["containers"][0]


def test_what_the_template_does_not_name_stays_as_it_is() -> None:
    assert made_by({}) == SAFE
    assert made_by({"spec": {}, "metadata": {}})["spec"] == SAFE["spec"]
    placed = {"nodeSelector": {"pool": "tf"}, "priorityClassName": "high", "tolerations": [{"operator": "Exists"}]}
    assert spec_with(**placed) == {**SAFE["spec"], **placed}


def test_the_agents_container_gets_what_the_template_adds_to_it() -> None:
    limits = {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1"}}
    assert agent_with(resources=limits) == {
        **SAFE_AGENT,
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1", "memory": "128Mi"}},
    }
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert agent_with(env=[proxy])["env"] == [*SAFE_AGENT["env"], proxy]
    mount = {"name": "ca", "mountPath": "/etc/ssl/certs"}
    assert agent_with(volumeMounts=[mount])["volumeMounts"] == [*SAFE_AGENT["volumeMounts"], mount]
    assert agent_with(securityContext={"runAsUser": 1000})["securityContext"] == {
        **SAFE_AGENT["securityContext"],
        "runAsUser": 1000,
    }


def test_a_volume_of_ours_is_replaced_with_its_source_and_others_are_added() -> None:
    own_disk = {"name": "work", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}
    added = {"name": "ca", "configMap": {"name": "ca"}}
    work, tmp, *proofs = SAFE["spec"]["volumes"]
    assert spec_with(volumes=[own_disk, added])["volumes"] == [own_disk, tmp, *proofs, added]
    in_memory = {"name": "work", "emptyDir": {"medium": "Memory"}}
    assert spec_with(volumes=[in_memory])["volumes"] == [in_memory, tmp, *proofs]
    assert work == {"name": "work", "emptyDir": {}}


def test_a_sidecar_is_as_safe_as_the_agent_unless_it_says_more() -> None:
    proxy = {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}
    (made,) = spec_with(initContainers=[{**proxy, "securityContext": {"readOnlyRootFilesystem": True}}])[
        "initContainers"
    ]
    assert made == {
        **proxy,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def test_two_entries_of_one_name_both_stay() -> None:
    dns = [{"containerPort": 53, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]
    assert agent_with(ports=dns)["ports"] == [*SAFE_AGENT["ports"], *dns]


def test_null_takes_no_default_away() -> None:
    assert spec_with(securityContext=None, volumes=None) == SAFE["spec"]
    assert agent_with(securityContext={"readOnlyRootFilesystem": None}) == SAFE_AGENT


def test_labels_and_annotations_are_added_and_ours_stay() -> None:
    meta = made_by({"metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}}})["metadata"]
    assert meta["labels"] == {**SAFE["metadata"]["labels"], "team": "a"}
    assert meta["annotations"].pop("note") == "x"
    assert meta["annotations"].keys() == SAFE["metadata"]["annotations"].keys()
    stolen = {names.POOL_LABEL: "another", names.NAME_LABEL: "web"}
    assert made_by({"metadata": {"labels": stolen}})["metadata"]["labels"] == SAFE["metadata"]["labels"]


def test_an_agent_is_replaced_for_another_template_and_for_other_labels() -> None:
    def of(**pool: Any) -> str:
        return pod.template_hash(b.a_pool(**pool), image="agent:1", operator_ca="CA")

    plain = of()
    assert plain == of(pod_template={"spec": {}})
    others = [
        of(pod_template={"spec": {"priorityClassName": "high"}}),
        of(pod_template={"metadata": {"labels": {"team": "a"}}}),
        of(pod_template={"metadata": {"labels": {"team": "b"}}}),
        of(image_pull_secrets=("registry",)),
    ]
    assert len({plain, *others}) == 5


def test_the_nodes_pull_the_image_with_the_pools_secrets() -> None:
    made = made_by({}, image_pull_secrets=("registry", "mirror"))
    assert made["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    assert "imagePullSecrets" not in SAFE["spec"]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"spec": {"volumes": [{"$patch": "delete", "name": "work"}]}}, "a directive of kubectl patch means nothing"),
        ({"spec": {"nodeSelector": {"$patch": "replace"}}}, "a directive of kubectl patch means nothing"),
        (
            {"spec": {"containers": [{"name": "agent", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]}},
            "ephemeral-storage kills the pod",
        ),
        (
            {"spec": {"initContainers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": 1}}}]}},
            "ephemeral-storage kills the pod",
        ),
        ({"spec": {"volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "a"}}]}}, "each other's runs"),
        ({"spec": {"volumes": [{"name": "tmp", "nfs": {"server": "a", "path": "/"}}]}}, "each other's runs"),
    ],
)
def test_what_no_rule_of_the_crd_can_see_is_refused_here(template: Json, told: str) -> None:
    (refusal,) = pod_template.refusals(template)
    assert told in refusal


FIELDS = ["name", "containers", "initContainers", "volumes", "env", "ports", "volumeMounts", "resources", "limits",
          "securityContext", "seccompProfile", "imagePullSecrets", "emptyDir", "$patch"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a", "agent", "work"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=20,
)
SPECS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)


@given(st.dictionaries(st.sampled_from(["spec", "metadata"]), VALUES | SPECS))
def test_whatever_a_template_is_it_is_judged_and_never_a_fault(template: Json) -> None:
    for refusal in pod_template.refusals(template):
        assert re.fullmatch(r"(spec|metadata)[.\w\[\]$]*: .+: .+", refusal)


@given(SPECS)
@example({"initContainers": [{"name": "a"}, {"name": "a"}]})
def test_a_merge_changes_neither_side(spec: Json) -> None:
    base, over = copy.deepcopy(SAFE["spec"]), copy.deepcopy(spec)
    made = pod_template.merged(base, over)
    assert (base, over) == (SAFE["spec"], spec)
    assert pod_template.merged(made, over) == made, "the same again changes nothing"
