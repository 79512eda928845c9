"""Whether an object of Kubernetes has only fields that Kubernetes knows, of the types that they have.

By the models of the `kubernetes` library, which are generated from its API. No cluster is asked, so rules that only the
API server knows are tried elsewhere (`-m cluster`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes.aio import client

PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def faults(obj: Mapping[str, Any]) -> list[str]:
    """Empty: none. Raises AttributeError for a kind that is not of Kubernetes."""
    return list(_faults(obj["kind"], obj, f"V1{obj['kind']}"))


def _faults(path: str, value: Any, kind: str) -> Iterator[str]:
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
        else:
            for number, item in enumerate(value):
                yield from _faults(f"{path}[{number}]", item, match[1])
    elif match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no map"
        else:
            for key, item in value.items():
                yield from _faults(f"{path}.{key}", item, match[1])
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or isinstance(value, bool) != (kind == "bool"):
            yield f"{path}: {value!r} is no {kind}"
    elif kind != "object":
        model = getattr(client, kind)
        known = {name: model.openapi_types[field] for field, name in model.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no {kind}"
        else:
            for key, item in value.items():
                if key in known:
                    yield from _faults(f"{path}.{key}", item, known[key])
                else:
                    yield f"{path}.{key}: {kind} has no such field"
