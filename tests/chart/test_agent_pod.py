"""The pods that the operator makes, on the real API server: they start where nothing but restricted pods may."""

from __future__ import annotations

from typing import Any

import pytest

from terrahalt_operator.core import pod
from terrahalt_operator.core.model import FilesystemMirrorSpec, ProviderCacheSpec, ProvidersSpec
from tests.crds.api_server import ApiServer
from tests.operator_core import builders as b

pytestmark = pytest.mark.cluster


PROVIDERS = ProvidersSpec(
    filesystem_mirror=FilesystemMirrorSpec(claim_name="mirror"), cache=ProviderCacheSpec(claim_name="cache")
)


def an_agent_pod(namespace: str, **spec: Any) -> dict[str, Any]:
    """With the volumes of a pool that has all of them."""
    pool = b.a_pool(namespace=namespace, service_account="default", providers=PROVIDERS)
    body = pod.agent_pod(pool, image="agent:1", operator_ca="CA", anchor_uid="anchor-uid")
    return {**body, "spec": {**body["spec"], **spec}}


@pytest.mark.parametrize("spec", [{}, {"hostUsers": False}], ids=["as it is", "with a user namespace"])
def test_a_namespace_that_enforces_restricted_pods_takes_an_agent(
    api: ApiServer, operator_namespace: str, spec: dict[str, Any]
) -> None:
    answer = api.create(an_agent_pod(operator_namespace, **spec), operator_namespace)
    assert answer.is_accepted, answer.body["message"]
    assert spec.items() <= answer.body["spec"].items()

    refused = api.create(an_agent_pod(operator_namespace, hostNetwork=True), operator_namespace)
    assert 'violates PodSecurity "restricted' in refused.body["message"], "the namespace enforces nothing"


def test_an_agent_has_its_accounts_token_for_an_hour_and_no_sidecar_has_it(
    api: ApiServer, operator_namespace: str
) -> None:
    """What the API server makes of the pod: to whoever does not say otherwise it adds a token of its own."""
    made = an_agent_pod(operator_namespace)
    (agent,) = made["spec"]["containers"]
    made["spec"]["containers"] = [agent, {**agent, "name": "sidecar", "ports": [], "volumeMounts": []}]
    answer = api.create(made, operator_namespace)
    assert answer.is_accepted, answer.body["message"]
    spec = answer.body["spec"]
    tokens = {
        volume["name"]: source["serviceAccountToken"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    }
    assert {name: token["expirationSeconds"] for name, token in tokens.items()} == {"identity": 3600, "account": 3600}
    mounted = {
        container["name"]: {mount["mountPath"] for mount in container.get("volumeMounts", ())}
        for container in spec["containers"]
    }
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounted["agent"]
    assert mounted["sidecar"] == set()
    assert spec["enableServiceLinks"] is False
