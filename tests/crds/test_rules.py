"""Every CEL rule of the CRDs, with an object that it lets through and one that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from terrahalt_operator.api import TerraformTaskSpec
from terrahalt_operator.api.crd import KINDS, root_schema
from terrahalt_operator.api.task import TASK
from terrahalt_operator.core import pod_template
from terrahalt_protocol.backends import NAMES
from tests.crds.api_server import ABSENT, ApiServer, Cause, a_pool, a_task
from tests.crds.edits import Edit, Values, members

KIBI = 1024
UNSEEN = {"observedGeneration": -1}
"""A status that no operator has written."""


def rules_in(schema: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    yield from schema.get("x-kubernetes-validations", [])
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from rules_in(schema[name])
    for below in schema.get("properties", {}).values():
        yield from rules_in(below)


RULES = [rule for kind in KINDS for rule in rules_in(root_schema(kind))]
IMMUTABLE = TerraformTaskSpec.immutable_fields()
IMMUTABILITY = {f"{name} can't be changed" for name in IMMUTABLE}


@dataclass(frozen=True)
class Case:
    """What an object that is created must be like, or, with `before`, one that is changed into it."""

    says: str
    field: str
    good: tuple[dict[str, Any], ...]
    bad: tuple[dict[str, Any], ...]
    before: dict[str, Any] | None = None
    kept_plan: str = ""
    """The digest in the status of `before`."""


def git(url: str = "https://git.example.com/network.git", **fields: Any) -> dict[str, Any]:
    return a_task(source={"git": {"url": url, **fields}})


def archive(url: str = "https://files.example.com/network.tar.gz", **fields: Any) -> dict[str, Any]:
    return a_task(source={"archive": {"url": url, "sha256": "0f" * 32, **fields}})


ROBOT = {"name": "robot"}


def backend(type_: str, **fields: Any) -> dict[str, Any]:
    return a_task(backend={"type": type_, **fields})


def with_outputs(name: str, action: str = "Apply", **fields: Any) -> dict[str, Any]:
    return a_task(action=action, outputsTo={"secretName": name, **fields})


def inline(*paths: str, text: str = "# nothing") -> dict[str, Any]:
    return a_task(source={"inline": dict.fromkeys(paths, text)})


def timed(field: str, seconds: int, **others: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {field: seconds, **others}
    return a_task(**spec)


def templated(**spec: Any) -> dict[str, Any]:
    return a_pool(podTemplate={"spec": spec})


def with_agent(**container: Any) -> dict[str, Any]:
    return templated(containers=[{"name": "agent", **container}])


def with_sidecar(**container: Any) -> dict[str, Any]:
    return templated(initContainers=[{"name": "proxy", "image": "proxy:1", "restartPolicy": "Always", **container}])


def with_volume(**volume: Any) -> dict[str, Any]:
    return templated(volumes=[{"name": "cache", **volume}])


MIRRORS: dict[str, Any] = {
    "filesystemMirror": {
        "claimName": "mirror",
        "include": ["hashicorp/aws", "example.com/*/*", "me:8443/a/b"],
    },
    "networkMirror": {"url": "https://mirror.example.com:8443/providers/"},
}
INCLUDE = "spec.providers.networkMirror.include"
DIGEST, OTHER_DIGEST = ("sha256:" + digit * 64 for digit in "01")
MODES = ("Graceful", "Force", "Abandon")
CASES = (
    Case(
        "the task's name is a label",
        "",
        good=(a_task("n" * 63),),
        bad=(a_task("n" * 64), a_task("n" * 253)),
    ),
    Case(
        "the pool's name goes into names and labels",
        "",
        good=(a_pool("n" * 40),),
        bad=(a_pool("n" * 41), a_pool("a.b")),
    ),
    Case(
        "operatorLossSeconds says nothing while onOperatorLoss is Continue",
        "spec.operatorLossSeconds",
        good=(
            a_pool(onOperatorLoss="Cancel"),
            a_pool(onOperatorLoss="Cancel", operatorLossSeconds=60),
            a_pool(onOperatorLoss="Cancel", operatorLossSeconds=604800),
            a_pool(onOperatorLoss="Continue"),
        ),
        bad=(a_pool(operatorLossSeconds=1800), a_pool(onOperatorLoss="Continue", operatorLossSeconds=1800)),
    ),
    Case(
        "providers says nothing",
        "spec.providers",
        good=(a_pool(providers={"cache": {"claimName": "cache"}}), a_pool(providers=MIRRORS)),
        bad=(a_pool(providers={}),),
    ),
    Case(
        "filesystemMirror and cache are laid out differently",
        "spec.providers.cache.claimName",
        good=(a_pool(providers={**MIRRORS, "cache": {"claimName": "cache"}}),),
        bad=(a_pool(providers={**MIRRORS, "cache": {"claimName": "mirror"}}),),
    ),
    Case(
        "maxAgents must be at least minIdle",
        "spec.maxAgents",
        good=(a_pool(minIdle=10), a_pool(minIdle=0, maxAgents=1)),
        bad=(a_pool(minIdle=11), a_pool(minIdle=2, maxAgents=1)),
    ),
    Case(
        "hostPID would give every task",
        "spec.podTemplate.spec.hostPID",
        good=(templated(hostPID=False),),
        bad=(templated(hostPID=True),),
    ),
    Case(
        "hostIPC would give every task",
        "spec.podTemplate.spec.hostIPC",
        good=(templated(hostIPC=False),),
        bad=(templated(hostIPC=True),),
    ),
    Case(
        "hostNetwork would give every task",
        "spec.podTemplate.spec.hostNetwork",
        good=(templated(hostNetwork=False),),
        bad=(templated(hostNetwork=True),),
    ),
    Case(
        "with shareProcessNamespace the kernel",
        "spec.podTemplate.spec.shareProcessNamespace",
        good=(templated(shareProcessNamespace=False),),
        bad=(templated(shareProcessNamespace=True),),
    ),
    Case(
        "an agent that is started again has forgotten its run: leave restartPolicy out",
        "spec.podTemplate.spec.restartPolicy",
        good=(templated(restartPolicy="Never"),),
        bad=(
            templated(restartPolicy="Always"),
            templated(restartPolicy="OnFailure"),
        ),
    ),
    Case(
        "activeDeadlineSeconds would kill a run",
        "spec.podTemplate.spec.activeDeadlineSeconds",
        good=(),
        bad=(templated(activeDeadlineSeconds=3600),),
    ),
    Case(
        "the grace holds the end of a run",
        "spec.podTemplate.spec.terminationGracePeriodSeconds",
        good=(a_pool(terminationGracePeriodSeconds=503),),
        bad=(templated(terminationGracePeriodSeconds=503),),
    ),
    Case(
        "the account is a field of its own",
        "spec.podTemplate.spec.serviceAccountName",
        good=(a_pool(serviceAccountName="tf"),),
        bad=(templated(serviceAccountName="tf"),),
    ),
    Case(
        "the agent alone has the account's token",
        "spec.podTemplate.spec.automountServiceAccountToken",
        good=(templated(automountServiceAccountToken=False),),
        bad=(templated(automountServiceAccountToken=True),),
    ),
    Case(
        "a state's lock is known as a run's own by the pod's name: leave hostname out",
        "spec.podTemplate.spec.hostname",
        good=(),
        bad=(templated(hostname="agent"),),
    ),
    Case(
        "a state's lock is known as a run's own by the pod's name: leave setHostnameAsFQDN out",
        "spec.podTemplate.spec.setHostnameAsFQDN",
        good=(),
        bad=(templated(setHostnameAsFQDN=True),),
    ),
    Case(
        "agents are no root: leave runAsNonRoot out",
        "spec.podTemplate.spec.securityContext.runAsNonRoot",
        good=(templated(securityContext={"runAsNonRoot": True}),),
        bad=(templated(securityContext={"runAsNonRoot": False}),),
    ),
    Case(
        "agents are no root: leave runAsUser out",
        "spec.podTemplate.spec.securityContext.runAsUser",
        good=(templated(securityContext={"runAsUser": 1000}),),
        bad=(templated(securityContext={"runAsUser": 0}),),
    ),
    Case(
        "agents are confined by seccomp",
        "spec.podTemplate.spec.securityContext.seccompProfile.type",
        good=(templated(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}),),
        bad=(templated(securityContext={"seccompProfile": {"type": "Unconfined"}}),),
    ),
    Case(
        "agents are no root: leave runAsNonRoot out",
        "spec.podTemplate.spec.containers[0].securityContext.runAsNonRoot",
        good=(with_agent(securityContext={"runAsNonRoot": True}),),
        bad=(with_agent(securityContext={"runAsNonRoot": False}),),
    ),
    Case(
        "agents are no root: leave runAsUser out",
        "spec.podTemplate.spec.containers[0].securityContext.runAsUser",
        good=(with_agent(securityContext={"runAsUser": 1000}),),
        bad=(with_agent(securityContext={"runAsUser": 0}),),
    ),
    Case(
        "agents are confined by seccomp",
        "spec.podTemplate.spec.containers[0].securityContext.seccompProfile.type",
        good=(with_agent(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}),),
        bad=(with_agent(securityContext={"seccompProfile": {"type": "Unconfined"}}),),
    ),
    Case(
        "a privileged container owns its node",
        "spec.podTemplate.spec.containers[0].securityContext.privileged",
        good=(with_agent(securityContext={"privileged": False}),),
        bad=(with_agent(securityContext={"privileged": True}),),
    ),
    Case(
        "nothing in an agent's pod gets more rights",
        "spec.podTemplate.spec.containers[0].securityContext.allowPrivilegeEscalation",
        good=(with_agent(securityContext={"allowPrivilegeEscalation": False}),),
        bad=(with_agent(securityContext={"allowPrivilegeEscalation": True}),),
    ),
    Case(
        "nothing in an agent's pod has capabilities",
        "spec.podTemplate.spec.containers[0].securityContext.capabilities",
        good=(),
        bad=(
            with_agent(securityContext={"capabilities": {"add": ["NET_ADMIN"]}}),
            with_agent(securityContext={"capabilities": {"drop": ["ALL"]}}),
        ),
    ),
    Case(
        "procMount would show",
        "spec.podTemplate.spec.containers[0].securityContext.procMount",
        good=(with_agent(securityContext={"procMount": "Default"}),),
        bad=(with_agent(securityContext={"procMount": "Unmasked"}),),
    ),
    Case(
        "agents are no root: leave runAsNonRoot out",
        "spec.podTemplate.spec.initContainers[0].securityContext.runAsNonRoot",
        good=(with_sidecar(securityContext={"runAsNonRoot": True}),),
        bad=(with_sidecar(securityContext={"runAsNonRoot": False}),),
    ),
    Case(
        "agents are no root: leave runAsUser out",
        "spec.podTemplate.spec.initContainers[0].securityContext.runAsUser",
        good=(with_sidecar(securityContext={"runAsUser": 1000}),),
        bad=(with_sidecar(securityContext={"runAsUser": 0}),),
    ),
    Case(
        "agents are confined by seccomp",
        "spec.podTemplate.spec.initContainers[0].securityContext.seccompProfile.type",
        good=(with_sidecar(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}),),
        bad=(with_sidecar(securityContext={"seccompProfile": {"type": "Unconfined"}}),),
    ),
    Case(
        "a privileged container owns its node",
        "spec.podTemplate.spec.initContainers[0].securityContext.privileged",
        good=(with_sidecar(securityContext={"privileged": False}),),
        bad=(with_sidecar(securityContext={"privileged": True}),),
    ),
    Case(
        "nothing in an agent's pod gets more rights",
        "spec.podTemplate.spec.initContainers[0].securityContext.allowPrivilegeEscalation",
        good=(with_sidecar(securityContext={"allowPrivilegeEscalation": False}),),
        bad=(with_sidecar(securityContext={"allowPrivilegeEscalation": True}),),
    ),
    Case(
        "nothing in an agent's pod has capabilities",
        "spec.podTemplate.spec.initContainers[0].securityContext.capabilities",
        good=(),
        bad=(
            with_sidecar(securityContext={"capabilities": {"add": ["NET_ADMIN"]}}),
            with_sidecar(securityContext={"capabilities": {"drop": ["ALL"]}}),
        ),
    ),
    Case(
        "procMount would show",
        "spec.podTemplate.spec.initContainers[0].securityContext.procMount",
        good=(with_sidecar(securityContext={"procMount": "Default"}),),
        bad=(with_sidecar(securityContext={"procMount": "Unmasked"}),),
    ),
    Case(
        "what runs beside an agent has to end with it",
        "spec.podTemplate.spec.containers[0].name",
        good=(with_agent(),),
        bad=(templated(containers=[{"name": "proxy", "resources": {}}]),),
    ),
    Case(
        "the image is a field of its own",
        "spec.podTemplate.spec.containers[0].image",
        good=(a_pool(image="agent:2"),),
        bad=(with_agent(image="agent:2"),),
    ),
    Case(
        "the image starts the agent: leave command out",
        "spec.podTemplate.spec.containers[0].command",
        good=(),
        bad=(with_agent(command=["sh"]),),
    ),
    Case(
        "the image starts the agent: leave args out",
        "spec.podTemplate.spec.containers[0].args",
        good=(),
        bad=(with_agent(args=["sh"]),),
    ),
    Case(
        "a probe would take an agent away",
        "spec.podTemplate.spec.containers[0].livenessProbe",
        good=(with_sidecar(livenessProbe={"tcpSocket": {"port": 1}}),),
        bad=(with_agent(livenessProbe={"tcpSocket": {"port": 1}}),),
    ),
    Case(
        "a probe would take an agent away",
        "spec.podTemplate.spec.containers[0].readinessProbe",
        good=(with_sidecar(readinessProbe={"tcpSocket": {"port": 1}}),),
        bad=(with_agent(readinessProbe={"tcpSocket": {"port": 1}}),),
    ),
    Case(
        "a probe would take an agent away",
        "spec.podTemplate.spec.containers[0].startupProbe",
        good=(with_sidecar(startupProbe={"tcpSocket": {"port": 1}}),),
        bad=(with_agent(startupProbe={"tcpSocket": {"port": 1}}),),
    ),
    Case(
        "a hook would take its time",
        "spec.podTemplate.spec.containers[0].lifecycle",
        good=(),
        bad=(with_agent(lifecycle={"preStop": {"sleep": {"seconds": 60}}}),),
    ),
    Case(
        "an agent that is started again has forgotten its run: leave restartPolicy out",
        "spec.podTemplate.spec.containers[0].restartPolicy",
        good=(with_sidecar(),),
        bad=(with_agent(restartPolicy="Always"),),
    ),
    Case(
        "rules that start an agent again",
        "spec.podTemplate.spec.containers[0].restartPolicyRules",
        good=(),
        bad=(with_agent(restartPolicyRules=[{"action": "Restart"}]),),
    ),
    Case(
        "the last report of a run is read there: leave terminationMessagePath out",
        "spec.podTemplate.spec.containers[0].terminationMessagePath",
        good=(),
        bad=(with_agent(terminationMessagePath="/tmp/end"),),
    ),
    Case(
        "the last report of a run is read there: leave terminationMessagePolicy out",
        "spec.podTemplate.spec.containers[0].terminationMessagePolicy",
        good=(),
        bad=(with_agent(terminationMessagePolicy="File"),),
    ),
    Case(
        "the operator tells an agent what it is",
        "spec.podTemplate.spec.containers[0].env",
        good=(with_agent(env=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]),),
        bad=(with_agent(env=[{"name": "A", "value": "a"}, {"name": "TERRAHALT_ENGINE", "value": "x"}]),),
    ),
    Case(
        "an agent has its own volume at this path",
        "spec.podTemplate.spec.containers[0].volumeMounts",
        good=(with_agent(volumeMounts=[{"name": "cache", "mountPath": "/cache"}]),),
        bad=(
            with_agent(volumeMounts=[{"name": "cache", "mountPath": "/work"}]),
            with_agent(volumeMounts=[{"name": "c", "mountPath": "/var/run/secrets/terrahalt.dev/agent"}]),
            with_agent(volumeMounts=[{"name": "c", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]),
            with_agent(volumeMounts=[{"name": "c", "mountPath": "/var/lib/terrahalt/providers"}]),
            with_agent(volumeMounts=[{"name": "c", "mountPath": "/var/cache/terrahalt/providers"}]),
        ),
    ),
    Case(
        "the agent's own container can't begin",
        "spec.podTemplate.spec.initContainers[0].name",
        good=(with_sidecar(),),
        bad=(with_sidecar(name="agent"),),
    ),
    Case(
        "hostPath would give every task",
        "spec.podTemplate.spec.volumes[0].hostPath",
        good=(with_volume(configMap={"name": "ca"}),),
        bad=(with_volume(hostPath={"path": "/"}),),
    ),
    Case(
        "a kubelet that finds more than sizeLimit",
        "spec.podTemplate.spec.volumes[0].emptyDir.sizeLimit",
        good=(with_volume(emptyDir={"medium": "Memory"}),),
        bad=(
            with_volume(emptyDir={"sizeLimit": "1Gi"}),
            with_volume(name="work", emptyDir={"sizeLimit": "1Gi"}),
        ),
    ),
    Case(
        "an agent proves itself, and has its account, by the volumes identity and account",
        "spec.podTemplate.spec.volumes[0].name",
        good=(with_volume(name="work", ephemeral={"volumeClaimTemplate": {}}),),
        bad=(with_volume(name="identity", emptyDir={}), with_volume(name="account", emptyDir={})),
    ),
    Case(
        "the volumes of a pool's providers are named by spec.providers",
        "spec.podTemplate.spec.volumes[0].name",
        good=(with_volume(name="providers", emptyDir={}),),
        bad=(with_volume(name="provider-mirror", emptyDir={}), with_volume(name="provider-cache", emptyDir={})),
    ),
    Case(
        "the operator sets this label or annotation itself",
        "spec.podTemplate.metadata.labels",
        good=(a_pool(podTemplate={"metadata": {"labels": {"team": "a"}}}),),
        bad=(
            a_pool(podTemplate={"metadata": {"labels": {"terrahalt.dev/run": "01"}}}),
            a_pool(podTemplate={"metadata": {"labels": {"app.kubernetes.io/name": "true"}}}),
        ),
    ),
    Case(
        "the operator sets this label or annotation itself",
        "spec.podTemplate.metadata.annotations",
        good=(a_pool(podTemplate={"metadata": {"annotations": {"example.com/note": "a"}}}),),
        bad=(
            a_pool(podTemplate={"metadata": {"annotations": {"terrahalt.dev/run": "01"}}}),
            a_pool(podTemplate={"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}),
        ),
    ),
    Case(
        "source needs exactly one",
        "spec.source",
        good=(a_task(), a_task(source={"configMapRef": {"name": "files"}}), git(), archive()),
        bad=(
            a_task(source={}),
            a_task(source={"inline": {"main.tf": ""}, "configMapRef": {"name": "files"}}),
            a_task(source={"inline": {"main.tf": ""}, "git": {"url": "https://git.example.com/a"}}),
            a_task(source={"configMapRef": {"name": "files"}, "git": {"url": "https://git.example.com/a"}}),
            a_task(source=archive()["spec"]["source"] | {"inline": {"main.tf": ""}}),
            a_task(source=archive()["spec"]["source"] | git()["spec"]["source"]),
            a_task(
                source={
                    "inline": {"main.tf": ""},
                    "configMapRef": {"name": "files"},
                    "git": {"url": "https://git.example.com/a"},
                }
            ),
        ),
    ),
    Case(
        "url must begin with https://",
        "spec.source.git.url",
        good=(
            git("https://github.com/hashicorp/example.git"),
            git("http://git.team-a.svc:8080/a/b~c/%20é"),
            git("https://[2001:db8::1]:8443/a"),
            git("https://git.example.com"),
        ),
        bad=(
            git("git.example.com/network"),
            git("git@git.example.com:network.git"),
            git("git://git.example.com/network.git"),
            git("file:///etc"),
            git("/etc"),
            git("ext::sh -c id"),
            git("--upload-pack=id"),
            git("https:///network.git"),
            git("https://git.example.com/a b"),
            git("https://git.example.com/a?token=x"),
            git("https://git.example.com/a#main"),
            git("https://git.example.com?token=x"),
            git("https://git.example.com\\a"),
            git("https://git.example.com/a\n"),
        ),
    ),
    Case(
        "an address for ssh has at most a user name",
        "spec.source.git.url",
        good=(
            git("ssh://git.example.com/network.git", secretRef=ROBOT),
            git("ssh://git@git.example.com:2222/~me/network.git", secretRef=ROBOT),
            git("ssh://git-1.x_y@[2001:db8::1]/a", secretRef=ROBOT),
        ),
        bad=(
            git("ssh://me:secret@git.example.com/a", secretRef=ROBOT),
            git("ssh://-oa/a", secretRef=ROBOT),
            git("ssh://-oProxyCommand=id@git.example.com/a", secretRef=ROBOT),
            git("ssh://@git.example.com/a", secretRef=ROBOT),
            git("ssh://git.example.com", secretRef=ROBOT),
            git("ssh://git.example.com/", secretRef=ROBOT),
            git("ssh://git@git@example.com/a", secretRef=ROBOT),
        ),
    ),
    Case(
        "ssh needs a key and the server's",
        "spec.source.git.secretRef",
        good=(git("ssh://git@git.example.com/a", secretRef=ROBOT),),
        bad=(git("ssh://git@git.example.com/a"),),
    ),
    Case(
        "secretRef of git would be sent over http",
        "spec.source.git.secretRef",
        good=(git(secretRef=ROBOT), git("http://git.team-a.svc/a")),
        bad=(git("http://git.team-a.svc/a", secretRef=ROBOT),),
    ),
    Case(
        "caRef of git is of the server's certificate",
        "spec.source.git.caRef",
        good=(git(caRef={"configMapRef": {"name": "ca"}}), git(caRef={"secretRef": {"name": "ca"}}, secretRef=ROBOT)),
        bad=(
            git("http://git.team-a.svc/a", caRef={"configMapRef": {"name": "ca"}}),
            git("ssh://git@git.example.com/a", secretRef=ROBOT, caRef={"configMapRef": {"name": "ca"}}),
        ),
    ),
    Case(
        "caRef needs exactly one",
        "spec.source.git.caRef",
        good=(git(caRef={"configMapRef": {"name": "ca"}}),),
        bad=(git(caRef={}), git(caRef={"configMapRef": {"name": "ca"}, "secretRef": {"name": "ca"}})),
    ),
    Case(
        "url holds a user name or a password",
        "spec.source.git.url",
        good=(git("https://git.example.com/a@b"),),
        bad=(git("https://me@git.example.com/a"), git("https://me:secret@git.example.com:8443/a"), git("http://@a/b")),
    ),
    Case(
        "ref must be the name of a branch or a tag",
        "spec.source.git.ref",
        good=(
            git(ref="main"),
            git(ref="v1.2.0"),
            git(ref="feature/a-b_c(d)+e@f"),
            git(ref="refs/heads/main"),
            git(ref="4b825dc642cb6eb9a060e54bf8d69288fbee4904"),
            git(ref="r" * 255),
        ),
        bad=(
            git(ref="-main"),
            git(ref="--upload-pack=id"),
            git(ref="+main"),
            git(ref="/main"),
            git(ref="a b"),
            git(ref="a\n"),
            git(ref="main:main"),
            git(ref="refs/heads/*"),
            git(ref="main~1"),
            git(ref="main^{tree}"),
            git(ref="a..b"),
            git(ref="main@{1}"),
            git(ref="a?"),
            git(ref="a[b]"),
            git(ref="a\\b"),
        ),
    ),
    Case(
        "path must be relative",
        "spec.source.git.path",
        good=(git(path="envs/prod"), git(path="a..b"), git(path=".hidden"), git(path="p" * 255)),
        bad=(
            git(path="/envs"),
            git(path=".."),
            git(path="../envs"),
            git(path="a/../b"),
            git(path="."),
            git(path="./envs"),
            git(path="envs/"),
            git(path="a//b"),
            git(path="a\\b"),
            git(path="a\nb"),
        ),
    ),
    Case(
        "url must begin with https://",
        "spec.source.archive.url",
        good=(
            archive("http://source-controller.flux-system.svc.cluster.local./gitrepository/a/b/c.tar.gz"),
            archive("https://[2001:db8::1]:8443/a%20b?X-Amz-Signature=1/2&b=?"),
        ),
        bad=(
            archive("files.example.com/a.zip"),
            archive("ftp://files.example.com/a.zip"),
            archive("file:///etc/a.zip"),
            archive("https:///a.zip"),
            archive("https://files.example.com/a b"),
            archive("https://files.example.com/a#b"),
            archive("https://files.example.com?a"),
            archive("https://files.example.com\\a"),
        ),
    ),
    Case(
        "url holds a user name or a password",
        "spec.source.archive.url",
        good=(archive("https://files.example.com/a@b"),),
        bad=(archive("https://me:secret@files.example.com/a"), archive("http://@a/b")),
    ),
    Case(
        "secretRef of archive would be sent over http",
        "spec.source.archive.secretRef",
        good=(archive(secretRef=ROBOT), archive("http://files.team-a.svc/a.zip")),
        bad=(archive("http://files.team-a.svc/a.zip", secretRef=ROBOT),),
    ),
    Case(
        "caRef of archive is of the server's certificate",
        "spec.source.archive.caRef",
        good=(archive(caRef={"secretRef": {"name": "ca"}}, secretRef=ROBOT),),
        bad=(archive("http://files.team-a.svc/a.zip", caRef={"configMapRef": {"name": "ca"}}),),
    ),
    Case(
        "caRef needs exactly one",
        "spec.source.archive.caRef",
        good=(archive(caRef={"configMapRef": {"name": "ca"}}),),
        bad=(archive(caRef={}),),
    ),
    Case(
        "path must be relative",
        "spec.source.archive.path",
        good=(archive(path="network-1.2.0/envs"),),
        bad=(archive(path="/envs"), archive(path="a/../b")),
    ),
    Case("inline has no files", "spec.source.inline", good=(inline("main.tf"),), bad=(inline(),)),
    Case(
        "a file's path in inline must be relative",
        "spec.source.inline",
        good=(
            inline("main.tf", "modules/network/main.tf", ".terraform.lock.hcl", "a..b", "user data.tpl", "...", "é"),
            inline("p" * 255),
        ),
        bad=(
            inline("/etc/passwd"),
            inline("../main.tf"),
            inline("main.tf", "a/../b"),
            inline("a/.."),
            inline("./main.tf"),
            inline("."),
            inline(".."),
            inline("a//b"),
            inline("a/"),
            inline(""),
            inline("a\\b"),
            inline("a\nb"),
            inline("a\x7fb"),
            inline("p" * 256),
        ),
    ),
    Case(
        "the files in inline have more than 131072 bytes",
        "spec.source.inline",
        good=(inline("main.tf", text="x" * 128 * KIBI), inline("a.tf", "b.tf", text="x" * 64 * KIBI)),
        bad=(
            inline("a.tf", "b.tf", text="x" * (64 * KIBI + 1)),
            inline(*(f"{n}.tf" for n in range(64)), text="x" * 3 * KIBI),
            # Fewer characters than the limit, but more bytes.
            inline("main.tf", text="é" * 100 * KIBI),
        ),
    ),
    Case(
        "each entry of envFrom needs exactly one",
        "spec.envFrom[0]",
        good=(
            a_task(envFrom=[{"secretRef": {"name": "aws"}}]),
            a_task(envFrom=[{"configMapRef": {"name": "net", "optional": True}, "prefix": "TF_VAR_"}]),
            a_pool(envFrom=[{"secretRef": {"name": "aws"}}, {"configMapRef": {"name": "proxy"}}]),
        ),
        bad=(
            a_task(envFrom=[{}]),
            a_task(envFrom=[{"prefix": "TF_VAR_"}]),
            a_task(envFrom=[{"secretRef": {"name": "aws"}, "configMapRef": {"name": "net"}}]),
            a_pool(envFrom=[{}]),
            a_pool(envFrom=[{"secretRef": {"name": "aws"}, "configMapRef": {"name": "net"}}]),
        ),
    ),
    *(
        Case(
            f"{field} is longer than timeoutSeconds",
            f"spec.{field}",
            good=(timed(field, 3600), timed(field, 7, timeoutSeconds=7)),
            bad=(timed(field, 3601), timed(field, 8, timeoutSeconds=7)),
        )
        for field in ("noOutputTimeoutSeconds", "initTimeoutSeconds")
    ),
    Case(
        "outputsTo needs action Apply",
        "spec.outputsTo",
        good=(with_outputs("network-outputs"), with_outputs("network-outputs", includeSensitive=True, retain=True)),
        bad=(with_outputs("network-outputs", action="Plan"), with_outputs("network-outputs", action="Destroy")),
    ),
    Case(
        "secretName begins like the Secrets that hold states",
        "spec.outputsTo.secretName",
        good=(with_outputs("tfstates"), with_outputs("my-terrahalt-x")),
        bad=(with_outputs("tfstate-default-network-tf"), with_outputs("terrahalt-plan-x")),
    ),
    Case(
        "type cloud and remote run terraform on other machines",
        "spec.backend.type",
        good=(a_task(backend={}), backend("s3", config={"endpoints": {"s3": "https://s3.example.com"}})),
        bad=(backend("cloud"), backend("remote", config={"organization": "a"})),
    ),
    Case(
        "type local would keep the state in the agent's pod",
        "spec.backend.type",
        good=(backend("kubernetes", config={"labels": {"team": "a"}}),),
        bad=(backend("local", config={"path": "/tmp/state"}),),
    ),
    Case(
        "type must be the name of a backend of terraform",
        "spec.backend.type",
        good=tuple(backend(name) for name in NAMES),
        bad=(backend("S3"), backend("swift"), backend("s3 "), backend('s3" {}')),
    ),
    Case(
        "each entry of variablesFrom needs exactly one",
        "spec.variablesFrom[0]",
        good=(
            a_task(variablesFrom=[{"secretRef": {"name": "net"}}]),
            a_task(variablesFrom=[{"configMapRef": {"name": "net", "optional": True}}, {"secretRef": {"name": "net"}}]),
        ),
        bad=(
            a_task(variablesFrom=[{}]),
            a_task(variablesFrom=[{"secretRef": {"name": "net"}, "configMapRef": {"name": "net"}}]),
        ),
    ),
    Case(
        "each entry of configFrom needs exactly one",
        "spec.backend.configFrom[0]",
        good=(
            backend("pg", configFrom=[{"secretRef": {"name": "states"}}]),
            backend("pg", configFrom=[{"configMapRef": {"name": "states", "optional": True}}]),
        ),
        bad=(
            backend("pg", configFrom=[{}]),
            backend("pg", configFrom=[{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}]),
        ),
    ),
    Case(
        "cancel is either absent or true",
        "spec.cancel",
        good=(a_task(), a_task(cancel=True)),
        bad=(a_task(cancel=False),),
    ),
    Case(
        "a cancel can't be taken back",
        "spec.cancel",
        before=a_task("cancelled", cancel=True),
        good=(a_task(cancel=True),),
        bad=(a_task(cancel=ABSENT),),
    ),
    Case(
        "approvedPlanDigest is not the digest of a plan of this task",
        "spec.approvedPlanDigest",
        good=(a_task(approval="Manual"),),
        bad=(a_task(approval="Manual", approvedPlanDigest=DIGEST),),
    ),
    Case(
        "approvedPlanDigest is not the digest of a plan of this task",
        "spec.approvedPlanDigest",
        before=a_task("unplanned", approval="Manual"),
        good=(a_task(approval="Manual"),),
        bad=(a_task(approval="Manual", approvedPlanDigest=DIGEST),),
    ),
    Case(
        "approvedPlanDigest is not the digest of a plan of this task",
        "spec.approvedPlanDigest",
        before=a_task("planned", approval="Manual"),
        kept_plan=DIGEST,
        good=(a_task(approval="Manual"), a_task(approval="Manual", approvedPlanDigest=DIGEST)),
        bad=(a_task(approval="Manual", approvedPlanDigest=OTHER_DIGEST),),
    ),
    Case(
        "approvedPlanDigest is not the digest of a plan of this task",
        "spec.approvedPlanDigest",
        before=a_task("approved", approval="Manual", approvedPlanDigest=DIGEST),
        kept_plan=DIGEST,
        good=(a_task(approval="Manual", approvedPlanDigest=DIGEST),),
        bad=(a_task(approval="Manual", approvedPlanDigest=OTHER_DIGEST),),
    ),
    Case(
        "an approval can't be taken back",
        "spec.approvedPlanDigest",
        before=a_task("approved-for-good", approval="Manual", approvedPlanDigest=DIGEST),
        kept_plan=DIGEST,
        good=(a_task(approval="Manual", approvedPlanDigest=DIGEST),),
        bad=(a_task(approval="Manual", approvedPlanDigest=ABSENT),),
    ),
    *(
        Case(
            "cancelMode only climbs",
            "spec.cancelMode",
            before=a_task(f"mode-{mode.lower()}", cancel=True, cancelMode=mode),
            good=tuple(a_task(cancel=True, cancelMode=higher) for higher in MODES[rank:]),
            bad=tuple(a_task(cancel=True, cancelMode=lower) for lower in (*MODES[:rank], *([ABSENT] if rank else []))),
        )
        for rank, mode in enumerate(MODES)
    ),
    Case(
        "cancelMode Abandon gives up a run",
        "spec.cancelMode",
        good=(a_task(cancel=True, cancelMode="Abandon"), a_task(cancelMode="Force")),
        bad=(a_task(cancelMode="Abandon"),),
    ),
    Case(
        "cancelMode Abandon gives up a run",
        "spec.cancelMode",
        before=a_task("not-cancelled", cancelMode="Force"),
        good=(a_task(cancel=True, cancelMode="Abandon"),),
        bad=(a_task(cancelMode="Abandon"),),
    ),
    Case(
        "cancelGraceSeconds can only be made shorter",
        "spec.cancelGraceSeconds",
        before=a_task("with-a-grace-of-100", cancelGraceSeconds=100),
        good=(a_task(cancelGraceSeconds=100), a_task(cancelGraceSeconds=1)),
        bad=(a_task(cancelGraceSeconds=101), a_task(cancelGraceSeconds=ABSENT)),
    ),
    Case(
        "cancelGraceSeconds can only be made shorter",
        "spec.cancelGraceSeconds",
        before=a_task("with-the-default-grace"),
        good=(a_task(cancelGraceSeconds=300), a_task(cancelGraceSeconds=299)),
        bad=(a_task(cancelGraceSeconds=301),),
    ),
    Case(
        "priority says who is next in the queue",
        "spec.priority",
        before=a_task("new", priority=5),
        good=(a_task(priority=6), a_task(priority=ABSENT)),
        bad=(),
    ),
    Case(
        "priority says who is next in the queue",
        "spec.priority",
        before=a_task("queued") | {"status": {"phase": "Queued"}},
        good=(a_task(priority=-1000), a_task(priority=1000)),
        bad=(),
    ),
    *(
        Case(
            "priority says who is next in the queue",
            "spec.priority",
            before=a_task(phase.lower(), priority=5) | {"status": {"phase": phase}},
            good=(a_task(priority=5), a_task(priority=5, ttlSecondsAfterFinished=1)),
            bad=(a_task(priority=6), a_task(priority=ABSENT)),
        )
        for phase in ("Assigned", "Succeeded")
    ),
    Case(
        "priority says who is next in the queue",
        "spec.priority",
        before=a_task("with-a-ttl", ttlSecondsAfterFinished=60) | {"status": {"phase": "Succeeded"}},
        good=(a_task(ttlSecondsAfterFinished=31536000), a_task(ttlSecondsAfterFinished=ABSENT)),
        bad=(a_task(priority=1),),
    ),
)

SPEC = root_schema(TASK)["properties"]["spec"]
REQUIRED = tuple(name for name in IMMUTABLE if name in SPEC["required"])
VALUES = Values(
    {
        "source.git.url": ("https://git.example.com/a", "https://git.example.com/b"),
        "source.archive.url": ("https://files.example.com/a", "https://files.example.com/b"),
        "backend.type": ("s3", "http"),
        "approval": ("Manual", "Automatic"),  # it has no third
        "action": ("Apply", "Destroy"),  # a Plan has no outputsTo
    }
)
"""With what a rule in CEL asks of a value that its schema does not say, by path."""
WHOLE = {name: VALUES.whole(SPEC["properties"][name], name) for name in IMMUTABLE}
"""Each immutable field with all that can be in it, none with its default."""
FULL = a_task("with-every-field", **WHOLE)
BARE = a_task("with-no-optional-field", **{name: WHOLE[name] for name in REQUIRED})


def edits_of(name: str) -> Iterator[Edit]:
    """Every single change of an immutable field, its own absence included."""
    yield Edit(f"remove {name}", WHOLE[name], ABSENT)
    if name not in REQUIRED:
        yield Edit(f"add {name}", ABSENT, WHOLE[name])
    yield from VALUES.edits(SPEC["properties"][name], name)


EDITS = [(name, edit) for name in IMMUTABLE for edit in edits_of(name)]


def refusals(case: Case) -> list[Any]:
    return [
        pytest.param(case, obj, id=f"{case.says.replace(' ', '-')}-{index}-{number}")
        for index, case in [(CASES.index(case), case)]
        for number, obj in enumerate(case.bad)
    ]


@pytest.fixture(scope="module")
def persisted(api: ApiServer, namespace: str) -> dict[str, dict[str, Any]]:
    """What is changed in these tests, by name: dry runs too need something to change."""
    plans = {case.before["metadata"]["name"]: case.kept_plan for case in CASES if case.before and case.kept_plan}
    objects = [case.before for case in CASES if case.before]
    objects += [FULL, BARE]
    for obj in objects:
        unapproved = {**obj, "spec": {key: value for key, value in obj["spec"].items() if key != "approvedPlanDigest"}}
        answer = api.create(unapproved, namespace, for_real=True)
        assert answer.is_accepted, answer.body
        if "status" in obj:
            status = {"status": obj["status"]}
            assert api.patch(obj, namespace, status, subresource="/status", for_real=True).is_accepted
        if digest := plans.get(obj["metadata"]["name"]):
            for part, patch in (("/status", {"status": {"plan": {"digest": digest}}}), ("", {"spec": obj["spec"]})):
                answer = api.patch(obj, namespace, patch, subresource=part, for_real=True)
                assert answer.is_accepted, answer.body
    return {obj["metadata"]["name"]: obj for obj in objects}


def change_into(api: ApiServer, namespace: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Cause]:
    """What is wrong with giving an object this spec, exactly: what it lacks is removed."""
    answer = api.patch(before, namespace, [{"op": "replace", "path": "/spec", "value": after["spec"]}])
    return causes(answer.is_accepted, answer.causes, answer.body)


def causes(is_accepted: bool, found: list[Cause], body: Mapping[str, Any]) -> list[Cause]:
    assert is_accepted or found, f"refused for another reason: {body}"
    return found


@pytest.mark.parametrize(
    "case", [case for case in CASES if ".podTemplate." in case.field], ids=lambda case: f"{case.field}: {case.says}"
)
def test_the_operator_refuses_of_a_pod_template_what_the_api_server_refuses(case: Case) -> None:
    """An older CRD may have let it in."""
    for obj in case.good:
        assert list(pod_template.refusals(obj["spec"].get("podTemplate", {}))) == []
    for obj in case.bad:
        (refusal,) = pod_template.refusals(obj["spec"]["podTemplate"])
        assert refusal.startswith(case.field.removeprefix("spec.podTemplate."))
        assert f": {case.says}" in refusal


@pytest.mark.parametrize("rule", RULES, ids=[rule["message"].split(":")[0] for rule in RULES])
def test_every_rule_has_a_case(rule: dict[str, str]) -> None:
    says = {case.says for case in CASES} | IMMUTABILITY
    assert len([text for text in says if rule["message"].startswith(text)]) == 1


@pytest.mark.parametrize("rule", RULES, ids=[rule["message"].split(":")[0] for rule in RULES])
def test_every_message_says_what_to_do(rule: dict[str, str]) -> None:
    what_is_wrong, colon, advice = rule["message"].partition(": ")
    assert what_is_wrong
    assert colon, "what is wrong, a colon, what to do"
    assert re.search(r"\b(add|choose|create|give|keep|leave|lower|put|raise|remove|set|use)\b", advice)
    assert rule["message"][0].islower(), "it follows the name of a field"


def test_the_mutable_fields_are_these() -> None:
    assert set(SPEC["properties"]) - set(IMMUTABLE) == {
        "cancel",
        "cancelMode",
        "cancelGraceSeconds",
        "priority",
        "ttlSecondsAfterFinished",
        "approvedPlanDigest",
    }


def test_every_property_below_an_immutable_field_is_added_changed_and_removed() -> None:
    tried = {edit.name for _, edit in EDITS}
    assert len(tried) == len(EDITS), "two edits of one name"
    assert all(edit.before != edit.after for _, edit in EDITS)
    for path, is_optional in properties_of(SPEC):
        if path.split(".")[0] in IMMUTABLE:
            assert any(name.startswith(f"change {path}") for name in tried), path
            if is_optional:
                assert {f"add {path}", f"remove {path}"} <= tried, path


def properties_of(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every property by its path, and whether it can come and go by itself."""
    needed = {*schema.get("required", ()), *members(schema)}
    for name, below in schema.get("properties", {}).items():
        yield f"{path}{name}", name not in needed
        yield from properties_of(below, f"{path}{name}.")
        yield from properties_of(below.get("items", {}), f"{path}{name}[].")


@pytest.mark.cluster
@pytest.mark.parametrize(("case", "obj"), [value for case in CASES if not case.before for value in refusals(case)])
def test_a_bad_object_is_refused_by_its_rule_alone(
    api: ApiServer, namespace: str, case: Case, obj: dict[str, Any]
) -> None:
    answer = api.create(obj, namespace)
    found = causes(answer.is_accepted, answer.causes, answer.body)
    assert [cause.field.removeprefix("<nil>") for cause in found] == [case.field]
    assert case.says in found[0].message


@pytest.mark.cluster
@pytest.mark.parametrize("case", [case for case in CASES if not case.before], ids=lambda case: case.says)
def test_good_objects_are_let_through(api: ApiServer, namespace: str, case: Case) -> None:
    for obj in case.good:
        answer = api.create(obj, namespace)
        assert answer.is_accepted, answer.body


@pytest.mark.cluster
@pytest.mark.parametrize(("case", "obj"), [value for case in CASES if case.before for value in refusals(case)])
def test_a_bad_change_is_refused_by_its_rule_alone(
    api: ApiServer, namespace: str, persisted: Mapping[str, Any], case: Case, obj: dict[str, Any]
) -> None:
    assert case.before
    (cause,) = change_into(api, namespace, case.before, obj)
    assert cause.field == case.field
    assert case.says in cause.message


@pytest.mark.cluster
@pytest.mark.usefixtures("persisted")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.before], ids=lambda case: case.before["metadata"]["name"]
)
def test_good_changes_are_let_through(api: ApiServer, namespace: str, case: Case) -> None:
    assert case.before
    for obj in case.good:
        assert change_into(api, namespace, case.before, obj) == []


@pytest.mark.cluster
@pytest.mark.parametrize(("name", "edit"), EDITS, ids=[edit.name for _, edit in EDITS])
def test_nothing_of_an_immutable_field_can_be_added_changed_or_removed(
    api: ApiServer, namespace: str, name: str, edit: Edit
) -> None:
    before, after = (
        a_task(f"edit-{EDITS.index((name, edit))}", **{**BARE["spec"], name: value}) for value in edit.sides
    )
    answer = api.create(before, namespace, for_real=True)
    assert answer.is_accepted, answer.body
    (cause, *others) = change_into(api, namespace, before, after)
    assert cause.field == f"spec.{name}"
    if edit.after is ABSENT and name in REQUIRED:
        assert "Required value" in cause.message
    else:
        assert others == []
        assert f"{name} can't be changed: a task runs once; create a new task instead" in cause.message


@pytest.mark.cluster
@pytest.mark.usefixtures("persisted")
def test_the_same_spec_again_changes_nothing_and_is_let_through(api: ApiServer, namespace: str) -> None:
    assert change_into(api, namespace, FULL, FULL) == []
    assert change_into(api, namespace, BARE, BARE) == []


@pytest.mark.cluster
@pytest.mark.usefixtures("persisted")
def test_a_task_is_cancelled_by_the_documented_patch(api: ApiServer, namespace: str) -> None:
    patch = '{"spec":{"cancel":true}}'
    printed = api.kubectl(
        "-n", namespace, "patch", "terraformtask", FULL["metadata"]["name"],
        "--type", "merge", "-p", patch, "--dry-run=server", "-o", "jsonpath={.spec.cancel}",
    )  # fmt: skip
    assert printed == "true"


@pytest.mark.cluster
@pytest.mark.usefixtures("persisted")
def test_a_cancel_can_be_hurried_in_one_patch(api: ApiServer, namespace: str) -> None:
    hurry = {"spec": {"cancel": True, "cancelMode": "Force", "cancelGraceSeconds": 1}}
    answer = api.patch(BARE, namespace, hurry)
    assert answer.is_accepted, answer.body


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (a_task(action=ABSENT), "spec.action"),
        (a_task(action="apply"), "spec.action"),
        (a_task(workspace=ABSENT), "spec.workspace"),
        (a_task(workspace=""), "spec.workspace"),
        (a_task(workspace="Net"), "spec.workspace"),
        (a_task(workspace="-net"), "spec.workspace"),
        (a_task(workspace="net-"), "spec.workspace"),
        (a_task(workspace="n" * 61), "spec.workspace"),
        (a_task(source=ABSENT), "spec.source"),
        (a_task(source={"inline": {f"{n}.tf": "" for n in range(65)}}), "spec.source.inline"),
        (a_task(source={"inline": {"main.tf": "x" * (128 * KIBI + 1)}}), "spec.source.inline.main.tf"),
        (a_task(source={"git": {}}), "spec.source.git.url"),
        (git("https://git.example.com/" + "a" * 1024), "spec.source.git.url"),
        (git(ref=""), "spec.source.git.ref"),
        (git(ref="r" * 256), "spec.source.git.ref"),
        (git(path=""), "spec.source.git.path"),
        (a_task(source={"archive": {"url": "https://files.example.com/a"}}), "spec.source.archive.sha256"),
        (archive(sha256="0F" * 32), "spec.source.archive.sha256"),
        (archive(sha256="sha256:" + "0f" * 32), "spec.source.archive.sha256"),
        (archive("https://files.example.com/" + "a" * 1024), "spec.source.archive.url"),
        (git(secretRef={}), "spec.source.git.secretRef.name"),
        (git(secretRef={"name": "Robot"}), "spec.source.git.secretRef.name"),
        (git(submodules="yes"), "spec.source.git.submodules"),
        (git(path="p" * 256), "spec.source.git.path"),
        (a_task(source={"configMapRef": {}}), "spec.source.configMapRef.name"),
        (a_task(source={"configMapRef": {"name": "A"}}), "spec.source.configMapRef.name"),
        (a_task(variables=["a"]), "spec.variables"),
        (a_task(envFrom=[{"secretRef": {}}]), "spec.envFrom[0].secretRef.name"),
        (a_task(envFrom=[{"secretRef": {"name": "aws"}, "prefix": "1-"}]), "spec.envFrom[0].prefix"),
        (a_task(envFrom=[{"secretRef": {"name": "aws"}}] * 33), "spec.envFrom"),
        (with_outputs("Not_a_name"), "spec.outputsTo.secretName"),
        (a_task(action="Apply", outputsTo={}), "spec.outputsTo.secretName"),
        (a_task(variablesFrom=[{"configMapRef": {}}]), "spec.variablesFrom[0].configMapRef.name"),
        (a_task(variablesFrom=[{"secretRef": {"name": "net"}}] * 33), "spec.variablesFrom"),
        (a_pool(envFrom=[{"secretRef": {"name": "aws"}}] * 33), "spec.envFrom"),
        (a_pool(envFrom=[{"secretRef": {}}]), "spec.envFrom[0].secretRef.name"),
        (a_pool(providers={"cache": {}}), "spec.providers.cache.claimName"),
        (a_pool(providers={"cache": {"claimName": "A"}}), "spec.providers.cache.claimName"),
        (a_pool(providers={"filesystemMirror": {}}), "spec.providers.filesystemMirror.claimName"),
        *(
            (a_pool(providers={"networkMirror": {"url": url}}), "spec.providers.networkMirror.url")
            for url in ("http://a/", "https://a", "https://a/?x=/", 'https://a/"\n}/', "https://a b/", "file:///a/")
        ),
        *(
            (a_pool(providers={"networkMirror": {"url": "https://a/", "include": include}}), f"{INCLUDE}{at}")
            for include, at in (([], ""), (["aws"], "[0]"), (["a/b/c/d"], "[0]"), (['a/"b'], "[0]"), (["a/b"] * 65, ""))
        ),
        (a_task(poolRef={"name": "a.b"}), "spec.poolRef.name"),
        (a_task(timeoutSeconds=0), "spec.timeoutSeconds"),
        (a_task(timeoutSeconds=604801), "spec.timeoutSeconds"),
        (a_task(timeoutSeconds="60"), "spec.timeoutSeconds"),
        *(
            (timed(field, seconds, timeoutSeconds=604800), f"spec.{field}")
            for field in ("noOutputTimeoutSeconds", "initTimeoutSeconds")
            for seconds in (0, 604801)
        ),
        (a_task(options={"lockTimeoutSeconds": -1}), "spec.options.lockTimeoutSeconds"),
        (a_task(options={"lockTimeoutSeconds": 604801}), "spec.options.lockTimeoutSeconds"),
        (a_task(priority=1001), "spec.priority"),
        (a_task(priority=-1001), "spec.priority"),
        (a_task(supersede="Applying"), "spec.supersede"),
        (a_task(queueTimeoutSeconds=0), "spec.queueTimeoutSeconds"),
        (a_task(queueTimeoutSeconds=604801), "spec.queueTimeoutSeconds"),
        (a_task(ttlSecondsAfterFinished=0), "spec.ttlSecondsAfterFinished"),
        (a_task(ttlSecondsAfterFinished=31536001), "spec.ttlSecondsAfterFinished"),
        (a_task(cancel="true"), "spec.cancel"),
        (a_task(approval="Never"), "spec.approval"),
        (a_task(approvedPlanDigest="sha256:0"), "spec.approvedPlanDigest"),
        (a_task(approvalTimeoutSeconds=0), "spec.approvalTimeoutSeconds"),
        (a_task(approvalTimeoutSeconds=2592001), "spec.approvalTimeoutSeconds"),
        (a_pool(allowedApproval=[]), "spec.allowedApproval"),
        (a_pool(allowedApproval=["Never"]), "spec.allowedApproval[0]"),
        (a_task(cancelMode="Kill"), "spec.cancelMode"),
        (a_task(cancelGraceSeconds=0), "spec.cancelGraceSeconds"),
        (a_task(cancelGraceSeconds=3601), "spec.cancelGraceSeconds"),
        (a_pool(allowMetadata=["169.254.169.254"]), "spec.allowMetadata[0]"),
        (a_pool(allowMetadata=["169.254.169.254/32", "metadata.google.internal/32"]), "spec.allowMetadata[1]"),
        (a_pool(allowMetadata=["10.0.0.0/8"] * 2), "spec.allowMetadata[1]"),
        (a_pool(engine={"type": "Pulumi"}), "spec.engine.type"),
        (a_pool(image=""), "spec.image"),
        (a_pool(image="two words"), "spec.image"),
        (a_pool(minIdle=-1), "spec.minIdle"),
        (a_pool(minIdle=0, maxAgents=0), "spec.maxAgents"),
        (a_pool(maxAgents=1001), "spec.maxAgents"),
        (a_pool(maxTasksPerAgent=0), "spec.maxTasksPerAgent"),
        (a_pool(maxTasksPerAgent=1001), "spec.maxTasksPerAgent"),
        (a_pool(idleTimeoutSeconds=-1), "spec.idleTimeoutSeconds"),
        (a_pool(drainPolicy="Never"), "spec.drainPolicy"),
        (a_pool(idleTimeoutSeconds=86401), "spec.idleTimeoutSeconds"),
        (a_pool(serviceAccountName=""), "spec.serviceAccountName"),
        (a_pool(imagePullSecrets=[{}]), "spec.imagePullSecrets[0].name"),
        (a_pool(podTemplate={"spec": {"containers": [{"resources": {}}]}}), "spec.podTemplate.spec.containers[0].name"),
        (a_pool(onOperatorLoss="Wait"), "spec.onOperatorLoss"),
        (a_pool(onOperatorLoss="Cancel", operatorLossSeconds=59), "spec.operatorLossSeconds"),
        (a_pool(onOperatorLoss="Cancel", operatorLossSeconds=604801), "spec.operatorLossSeconds"),
        (a_pool(terminationGracePeriodSeconds=103), "spec.terminationGracePeriodSeconds"),
        (a_pool(terminationGracePeriodSeconds=3704), "spec.terminationGracePeriodSeconds"),
    ],
)
def test_a_value_out_of_bounds_is_refused_at_its_field(
    api: ApiServer, namespace: str, obj: dict[str, Any], field: str
) -> None:
    answer = api.create(obj, namespace)
    assert field in [cause.field for cause in answer.causes], answer.body


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("obj", "field"),
    [(a_task(cancle=True), "spec.cancle"), (a_pool(minimumIdle=1), "spec.minimumIdle")],
)
def test_a_strict_client_is_told_of_a_misspelt_field(
    api: ApiServer, namespace: str, obj: dict[str, Any], field: str
) -> None:
    answer = api.create(obj, namespace)
    assert not answer.is_accepted
    assert f'unknown field "{field}"' in answer.body["message"]


@pytest.mark.cluster
def test_what_is_left_out_gets_its_default(api: ApiServer, namespace: str) -> None:
    task = api.create(a_task(), namespace).body
    assert task["spec"] == {
        **a_task()["spec"],
        "approval": "Automatic",
        "approvalTimeoutSeconds": 86400,
        "poolRef": {"name": "default"},
        "options": {"lockTimeoutSeconds": 60},
        "priority": 0,
        "supersede": "None",
        "timeoutSeconds": 3600,
        "cancelMode": "Graceful",
        "cancelGraceSeconds": 300,
    }
    assert task["status"] == UNSEEN
    pool = api.create({key: value for key, value in a_pool().items() if key != "spec"}, namespace).body
    assert pool["spec"] == {
        "engine": {"type": "Terraform"},
        "minIdle": 1,
        "maxAgents": 10,
        "maxTasksPerAgent": 1,
        "idleTimeoutSeconds": 600,
        "drainPolicy": "Ladder",
        "serviceAccountName": "terrahalt-agent",
        "onOperatorLoss": "Continue",
        "terminationGracePeriodSeconds": 403,
    }
    assert pool["status"] == UNSEEN


@pytest.mark.cluster
def test_variables_keep_every_json_value(api: ApiServer, namespace: str) -> None:
    variables = {
        "text": "a",
        "number": 1.5,
        "truth": False,
        "list": [1, ["b"]],
        "map": {"deep": {"er": [{}]}},
        "none": None,
    }
    assert api.create(a_task(variables=variables), namespace).body["spec"]["variables"] == variables
