"""The schema of a pool's `podTemplate`: what of a pod may be anything, and what the API server refuses.

Not a PodSpec, which would make the CRD twenty times as large and old with each release of Kubernetes: unknown
fields are kept, and only what a rule looks at is declared. The rules are made of `core.pod_template`. Used by
`pool`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from terrahalt_operator.core import names, pod_template
from terrahalt_operator.core.pod_template import Ban

from .schema import Keywords, Rule

MAX_KEYS, MAX_VOLUMES, MAX_SIDECARS, MAX_ITEMS = 64, 64, 16, 256
_REST = "As Kubernetes has it, but for what is refused of it."
_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}

Schema = dict[str, Any]


def _rule(ban: Ban) -> Rule:
    steps = ban.path.split(".")
    absent = [f"!has(self.{'.'.join(steps[: n + 1])})" for n in range(len(steps))]
    if ban.never:
        absent.append(f"!(self.{ban.path} in {_list(ban.never)})")
    elif ban.only:
        absent.append(f"self.{ban.path} in {_list(ban.only)}")
    return Rule(" || ".join(absent), ban.why, f".{ban.path}", "FieldValueForbidden")


def _list(values: Iterable[Any]) -> str:
    literals = [str(v).lower() if isinstance(v, bool | int) else f"'{v}'" for v in values]
    return f"[{', '.join(literals)}]"


def _object(description: str, bans: Iterable[Ban], *rules: Rule, **properties: Schema) -> Schema:
    """With the properties that its rules look at, and any others."""
    below: dict[str, Any] = {}
    bans = tuple(bans)
    for ban in bans:
        *parents, last = ban.path.split(".")
        at = below
        for parent in parents:
            found = at.setdefault(parent, {"type": "object", "description": _REST, **_ANYTHING, "properties": {}})
            at = found["properties"]
        limits = ban.only or ban.never
        about = f"Only {', '.join(map(str, ban.only))}" if ban.only else f"Not {', '.join(map(str, ban.never))}"
        found = at.setdefault(last, _of_type(ban.type))
        found["description"] = f"{about if limits else 'Refused'}: {ban.why}."
    return {
        "type": "object",
        "description": description,
        **_ANYTHING,
        "properties": {**below, **properties},
        "x-kubernetes-validations": [rule.as_schema() for rule in (*map(_rule, bans), *rules)],
    }


def _of_type(kind: str) -> Schema:
    match kind:
        case "object":
            return {"type": "object", **_ANYTHING}
        case "strings":
            return {"type": "array", "maxItems": MAX_ITEMS, "items": {"type": "string"}}
        case "objects":
            return {"type": "array", "maxItems": MAX_ITEMS, "items": {"type": "object", **_ANYTHING}}
    return {"type": kind}


def _named(max_items: int, items: Schema) -> Schema:
    return {
        "type": "array",
        "maxItems": max_items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {**items, "required": ["name"]},
    }


def _texts(kind: str) -> Schema:
    own = f"k.startsWith('{names.GROUP}/') || k in {_list(pod_template.OWN_KEYS)}"
    rule = Rule(f"!self.exists(k, {own})", pod_template.OWN_KEY, "", "FieldValueForbidden")
    return {
        "type": "object",
        "description": f"Added to the {kind} that the operator sets.",
        "maxProperties": MAX_KEYS,
        "additionalProperties": {"type": "string", "maxLength": 4096},
        "x-kubernetes-validations": [rule.as_schema()],
    }


def _items(description: str, key: str) -> Schema:
    by_key = {key: {"type": "string", "maxLength": 1024, "description": _REST}}
    item = {"type": "object", **_ANYTHING, "properties": by_key}
    return {"type": "array", "description": description, "maxItems": MAX_ITEMS, "items": item}


_AGENT = _object(
    "The agent's own container.",
    pod_template.AGENT,
    Rule(
        "!has(self.env) || !self.env.exists(v, has(v.name) && v.name.startsWith('TERRAHALT_'))",
        pod_template.OWN_VARIABLE, ".env", "FieldValueForbidden",
    ),
    Rule(
        "!has(self.volumeMounts) || !self.volumeMounts.exists(m, has(m.mountPath) && m.mountPath in "
        f"{_list(pod_template.CONTROL_MOUNTS)})",
        pod_template.OWN_MOUNT, ".volumeMounts", "FieldValueForbidden",
    ),
    env=_items("Variables for the agent, and so for terraform.", "name"),
    volumeMounts=_items("Where the agent sees volumes.", "mountPath"),
)  # fmt: skip

_SPEC = _object(
    "A part of a PodSpec, merged over the safe one: lists of named things by their names.",
    pod_template.POD,
    containers={**_named(1, _AGENT), "description": "The agent's own container alone, by its name `agent`."},
    initContainers={
        **_named(MAX_SIDECARS, _object("A container that begins before the agent.", pod_template.SIDECAR)),
        "description": "Containers that begin before the agent; with restartPolicy Always they end after it.",
    },
    volumes={
        **_named(MAX_VOLUMES, _object("A volume.", pod_template.VOLUME)),
        "description": "Volumes; `work` and `tmp` replace the agent's own.",
    },
)

POD_TEMPLATE = Keywords(
    type="object",
    properties={
        "metadata": {
            "type": "object",
            "description": "Labels and annotations of the pods.",
            "properties": {"labels": _texts("labels"), "annotations": _texts("annotations")},
        },
        "spec": _SPEC,
    },
)
"""Beside `dict[str, Any]`."""
