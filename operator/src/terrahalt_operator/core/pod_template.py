"""What a pool adds to its agents' pods: merged over the safe defaults, and what of it is refused.

The merge is Kubernetes' strategic one: lists of named things by their name, other lists as a whole. What
would take an agent's safety or a run's end away is refused; `api.pod_template` makes CEL rules of the same
table, so that most of it never gets into the cluster. What could only be seen here, and what an older
CRD has let in, is told in the pool's condition. Pure; called by `pod` and `world`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from terrahalt_operator.core import names
from terrahalt_protocol import providers

Json = dict[str, Any]

CONTROL_MOUNTS = (
    "/work",
    "/tmp",
    "/var/run/secrets/terrahalt.dev/agent",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    providers.MIRROR_PATH,
    providers.CACHE_PATH,
)
"""Where the agent has its own volumes."""
PROVIDER_VOLUMES = MIRROR_VOLUME, CACHE_VOLUME = "provider-mirror", "provider-cache"
"""Nobody writes to the first one."""
OWN_KEYS = (names.NAME_LABEL, "app.kubernetes.io/managed-by", names.DO_NOT_DISRUPT, names.SAFE_TO_EVICT)
"""Labels and annotations that the operator sets, beside all of its own group."""


@dataclass(frozen=True, slots=True)
class Ban:
    """One field that a template may not have, or not with any value."""

    path: str
    """From the part of the template that it is about, with dots."""
    type: Literal["boolean", "string", "integer", "object", "strings", "objects"]
    why: str
    """What is wrong, a colon, what to do."""
    only: tuple[Any, ...] = ()
    """Values that are let through all the same."""
    never: tuple[Any, ...] = ()
    """The only ones that are not; empty: all."""

    def is_broken_by(self, part: Mapping[str, Any]) -> bool:
        *parents, last = self.path.split(".")
        at: Any = part
        for name in parents:
            at = at.get(name) if isinstance(at, Mapping) else None
        if not isinstance(at, Mapping) or at.get(last) is None:
            return False
        return at[last] in self.never if self.never else at[last] not in self.only


_IDENTITY = (
    Ban("runAsNonRoot", "boolean", "agents are no root: leave runAsNonRoot out", only=(True,)),
    Ban("runAsUser", "integer", "agents are no root: leave runAsUser out, or set another one than 0", never=(0,)),
    Ban("seccompProfile.type", "string", "agents are confined by seccomp: leave seccompProfile out",
        never=("Unconfined",)),
)  # fmt: skip
_CONTEXT = (
    *_IDENTITY,
    Ban("privileged", "boolean", "a privileged container owns its node: leave privileged out", only=(False,)),
    Ban("allowPrivilegeEscalation", "boolean", "nothing in an agent's pod gets more rights than it was started "
        "with: leave allowPrivilegeEscalation out", only=(False,)),
    Ban("capabilities", "object", "nothing in an agent's pod has capabilities: leave capabilities out"),
    Ban("procMount", "string", "procMount would show what the kernel keeps from containers: leave it out",
        only=("Default",)),
)  # fmt: skip


def _below(path: str, bans: tuple[Ban, ...]) -> tuple[Ban, ...]:
    return tuple(Ban(f"{path}.{ban.path}", ban.type, ban.why, ban.only, ban.never) for ban in bans)


POD = (
    Ban("hostPID", "boolean", "hostPID would give every task the processes of its node: leave it out", only=(False,)),
    Ban("hostIPC", "boolean", "hostIPC would give every task the memory of others: leave it out", only=(False,)),
    Ban("hostNetwork", "boolean", "hostNetwork would give every task its node's network, and an agent's port "
        "to one agent of a node only: leave it out", only=(False,)),
    Ban("shareProcessNamespace", "boolean", "with shareProcessNamespace the kernel does not end what an agent "
        "leaves behind: leave it out", only=(False,)),
    Ban("restartPolicy", "string", "an agent that is started again has forgotten its run: leave restartPolicy out",
        only=("Never",)),
    Ban("activeDeadlineSeconds", "integer", "activeDeadlineSeconds would kill a run whatever it does: use "
        "timeoutSeconds of the tasks"),
    Ban("terminationGracePeriodSeconds", "integer", "the grace holds the end of a run: set "
        "spec.terminationGracePeriodSeconds of the pool"),
    Ban("serviceAccountName", "string", "the account is a field of its own: set spec.serviceAccountName of the pool"),
    Ban("automountServiceAccountToken", "boolean", "the agent alone has the account's token: leave "
        "automountServiceAccountToken out, and give a sidecar that needs one a projected volume", only=(False,)),
    Ban("hostname", "string", "a state's lock is known as a run's own by the pod's name: leave hostname out"),
    Ban("setHostnameAsFQDN", "boolean", "a state's lock is known as a run's own by the pod's name: leave "
        "setHostnameAsFQDN out", only=(False,)),
    *_below("securityContext", _IDENTITY),
)  # fmt: skip
ANY_CONTAINER = _below("securityContext", _CONTEXT)
_PROBED = "a probe would take an agent away from its run, and the operator sets the one that it needs: leave it out"
AGENT = (
    Ban("name", "string", "what runs beside an agent has to end with it: put it under initContainers, with "
        "restartPolicy Always", only=(names.AGENT_CONTAINER,)),
    Ban("image", "string", "the image is a field of its own: set spec.image of the pool"),
    Ban("command", "strings", "the image starts the agent: leave command out"),
    Ban("args", "strings", "the image starts the agent: leave args out"),
    Ban("livenessProbe", "object", _PROBED),
    Ban("readinessProbe", "object", _PROBED),
    Ban("startupProbe", "object", _PROBED),
    Ban("lifecycle", "object", "a hook would take its time from the end of a run: leave lifecycle out"),
    Ban("restartPolicy", "string", "an agent that is started again has forgotten its run: leave restartPolicy out",
        only=("Never",)),
    Ban("restartPolicyRules", "objects", "rules that start an agent again make it forget its run: leave "
        "restartPolicyRules out"),
    Ban("terminationMessagePath", "string", "the last report of a run is read there: leave "
        "terminationMessagePath out"),
    Ban("terminationMessagePolicy", "string", "the last report of a run is read there: leave "
        "terminationMessagePolicy out"),
    *ANY_CONTAINER,
)  # fmt: skip
SIDECAR = (
    Ban("name", "string", "the agent's own container can't begin before itself: give it another name",
        never=(names.AGENT_CONTAINER,)),
    *ANY_CONTAINER,
)  # fmt: skip
VOLUME = (
    Ban("hostPath", "object", "hostPath would give every task a part of its node: use another kind of volume"),
    Ban("emptyDir.sizeLimit", "string", "a kubelet that finds more than sizeLimit kills the pod within two "
        "seconds: leave sizeLimit out"),
    Ban("name", "string", "an agent proves itself, and has its account, by the volumes identity and account: give "
        "yours another name", never=("identity", "account")),
    Ban("name", "string", "the volumes of a pool's providers are named by spec.providers: give yours another name",
        never=PROVIDER_VOLUMES),
)  # fmt: skip

OWN_VOLUMES = ("work", "tmp")
OF_ONE_AGENT = {"emptyDir", "ephemeral"}
SHARED = "agents that share it would delete each other's runs: use emptyDir or ephemeral"

OWN_KEY = "the operator sets this label or annotation itself: use a key of your own"
OWN_VARIABLE = "the operator tells an agent what it is in variables with TERRAHALT_: give yours another name"
OWN_MOUNT = "an agent has its own volume at this path: use another mountPath"
_DIRECTIVE = "a directive of kubectl patch means nothing here: leave {} out"
_STORAGE = (
    "a kubelet that finds more than a limit of ephemeral-storage kills the pod within two seconds: leave that limit out"
)


def refusals(template: Mapping[str, Any]) -> Iterator[str]:
    """Each as where it is, and why. What has another shape than a pod's is left to the API server."""
    meta, spec = _object(template.get("metadata")), _object(template.get("spec"))
    for kind in ("labels", "annotations"):
        yield from (f"metadata.{kind}: {OWN_KEY}" for key in _object(meta.get(kind)) if is_own_key(key))
    yield from _broken("spec", spec, POD)
    for at, container in _objects("spec.containers", spec):
        yield from _broken(at, container, AGENT)
        yield from _of_container(at, container)
        for _, variable in _objects("env", container):
            if str(variable.get("name")).startswith("TERRAHALT_"):
                yield f"{at}.env: {OWN_VARIABLE}"
        for _, mount in _objects("volumeMounts", container):
            if mount.get("mountPath") in CONTROL_MOUNTS:
                yield f"{at}.volumeMounts: {OWN_MOUNT}"
    for at, container in _objects("spec.initContainers", spec):
        yield from _broken(at, container, SIDECAR)
        yield from _of_container(at, container)
    for at, volume in _objects("spec.volumes", spec):
        yield from _broken(at, volume, VOLUME)
        kinds = {key for key in volume if not key.startswith("$")} - {"name"}
        if volume.get("name") in OWN_VOLUMES and not kinds <= OF_ONE_AGENT:
            yield f"{at}: {SHARED}"
    yield from (f"{where}: {_DIRECTIVE.format(key)}" for where, key in _directives("spec", spec))


def is_own_key(key: str) -> bool:
    return key.startswith(f"{names.GROUP}/") or key in OWN_KEYS


def _broken(at: str, part: Mapping[str, Any], bans: tuple[Ban, ...]) -> Iterator[str]:
    yield from (f"{at}.{ban.path}: {ban.why}" for ban in bans if ban.is_broken_by(part))


def _of_container(at: str, container: Mapping[str, Any]) -> Iterator[str]:
    if "ephemeral-storage" in _object(_object(container.get("resources")).get("limits")):
        yield f"{at}.resources.limits: {_STORAGE}"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(at: str, part: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of the list that the last word of `at` names, each with where it is."""
    found = part.get(at.rpartition(".")[2])
    for number, value in enumerate(found if isinstance(found, list) else ()):
        yield f"{at}[{number}]", _object(value)


def _directives(at: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        yield from ((at, key) for key in value if key.startswith("$"))
        for key, below in value.items():
            yield from _directives(f"{at}.{key}", below)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _directives(f"{at}[{number}]", below)


# ---- the merge

_MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
}
"""`patchMergeKey` of the core API."""
_OF_SIDECARS: Json = {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}


def merged(pod_spec: Json, template_spec: Mapping[str, Any]) -> Json:
    """The pod's spec with the template over it; both stay as they are."""
    spec = _merged(pod_spec, template_spec)
    if isinstance(sidecars := spec.get("initContainers"), list):
        spec["initContainers"] = [_merged(_OF_SIDECARS, c) if isinstance(c, Mapping) else c for c in sidecars]
    return spec


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Json:
    new = dict(base)
    for key, value in over.items():
        before = base.get(key)
        if value is None:
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            new[key] = _merged(before, value)
        elif isinstance(before, list) and key in _MERGED_BY and _are_named(value, _MERGED_BY[key]):
            new[key] = _merged_lists(before, value, _MERGED_BY[key], replaces=key == "volumes")
        else:
            new[key] = value
    return new


def _are_named(value: Any, by: str) -> bool:
    return isinstance(value, list) and all(isinstance(_object(item).get(by), str | int) for item in value)


def _merged_lists(base: list[Json], over: list[Json], by: str, *, replaces: bool) -> list[Json]:
    """`replaces`: of one that both have only what the second one names stays; a volume has one source."""
    items = dict(_numbered(base, by))
    for key, item in _numbered(over, by):
        before = items.get(key, {})
        if replaces and item.keys() != {by}:
            before = {field: value for field, value in before.items() if field in item}
        items[key] = _merged(before, item)
    return list(items.values())


def _numbered(items: list[Json], by: str) -> Iterator[tuple[tuple[str | int, int], Json]]:
    """Two of one list may share a name (53/TCP and 53/UDP): the first is the other list's first, and so on."""
    seen: Counter[str | int] = Counter()
    for item in items:
        yield (item[by], seen[item[by]]), item
        seen[item[by]] += 1
