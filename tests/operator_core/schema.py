"""What the API server would do to an object of ours: refuse it, or prune what the CRD does not know.

A status that is pruned never equals the wanted one, and would be written again for ever. Only the
keywords that the status of a task uses; the rest is tried on a real API server.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from terrahalt_operator.core.model import TaskStatus

CRD = Path(__file__).parents[2] / "crds" / "terraformtasks.yaml"
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@cache
def _status_schema() -> dict[str, Any]:
    crd = yaml.safe_load(CRD.read_text())
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    return schema


def faults_of_status(status: TaskStatus) -> list[str]:
    """Why the API server would not keep this status as it is; empty: it does."""
    plain = msgspec.json.decode(msgspec.json.encode(status))
    faults = list(_faults("status", plain, _status_schema()))
    if msgspec.convert(plain, TaskStatus) != status:
        faults.append("status: read back it is another")
    return faults


def _faults(path: str, value: Any, schema: dict[str, Any]) -> list[str]:
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "boolean"):
        return [f"{path}: {value!r} is no {kind}"]
    faults: list[str] = []
    if kind == "object":
        known = schema.get("properties", {})
        faults += [f"{path}.{key}: would be pruned" for key in value if key not in known]
        faults += [f"{path}.{key}: is required" for key in schema.get("required", ()) if key not in value]
        for key in value.keys() & known.keys():
            faults += _faults(f"{path}.{key}", value[key], known[key])
    if kind == "array":
        if len(value) > schema.get("maxItems", len(value)):
            faults.append(f"{path}: has {len(value)} items")
        keys = schema.get("x-kubernetes-list-map-keys", ())
        if keys and len({tuple(item[key] for key in keys) for item in value}) < len(value):
            faults.append(f"{path}: the same {keys} twice")
        for index, item in enumerate(value):
            faults += _faults(f"{path}[{index}]", item, schema["items"])
    if kind == "string":
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            faults.append(f"{path}: has {len(value)} characters")
        if value not in schema.get("enum", [value]):
            faults.append(f"{path}: {value!r} is none of {schema['enum']}")
        if schema.get("format") == "date-time" and not _TIME.fullmatch(value):
            faults.append(f"{path}: {value!r} is no time")
    return faults
