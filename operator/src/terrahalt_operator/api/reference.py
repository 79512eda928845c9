"""Turns CustomResourceDefinitions into docs/api.md: each field with its type, bounds, default and text, each rule
with its message.

Pure, and knows nothing but what the API server is told: what it writes can't differ from what is enforced. A keyword
that it has no words for is an error, not left out. Called by `generate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_SILENT = frozenset(
    {
        "additionalProperties",
        "description",
        "items",
        "properties",
        "required",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-validations",
    }
)
"""Said elsewhere: as a row, a rule, or with the type."""
_BOUNDS = {"imum": "", "Length": " characters", "Items": " entries", "Properties": " entries"}
"""After `min` or `max`, and what it counts."""
_FORMATS = {"date-time": "RFC 3339", "cidr": "a CIDR", "int32": "", "int64": ""}
_INTRO = """\
# The API, field by field

Two kinds of `{group}/{version}`. `kubectl explain terraformtask.spec` shows the same texts; what a field is for, and
how fields go together, is in the other documents. A name ends with `[]` where it is one of a list, with `.*` where it
is one of a map. The API server fills defaults in; what is absent and has none is off. *Never changes*: an update that
changes, adds or removes it is refused. A field that is not here is refused by `kubectl create` and `kubectl apply`;
`kubectl patch` only warns, and does nothing with it.
"""
_RULES = "What breaks one of these rules is refused, in these words:\n\n"


def reference(definitions: Iterable[Schema]) -> str:
    """The whole document, of CRDs with one version each."""
    definitions = list(definitions)
    spec = definitions[0]["spec"]
    intro = _INTRO.format(group=spec["group"], version=spec["versions"][0]["name"])
    return "\n".join([intro, *(_kind(definition["spec"]) for definition in definitions)])


def _kind(spec: Schema) -> str:
    (version,) = spec["versions"]
    root = version["schema"]["openAPIV3Schema"]
    names = (spec["names"]["plural"], spec["names"]["singular"], *spec["names"].get("shortNames", ()))
    columns = version["additionalPrinterColumns"]
    shown = ", ".join(column["name"] for column in columns if not column.get("priority"))
    wide = ", ".join(column["name"] for column in columns if column.get("priority"))
    parts = [
        f"## {spec['names']['kind']}",
        _text(root["description"]),
        f"For kubectl: {', '.join(f'`{name}`' for name in names)}. `kubectl get` shows {shown}"
        + (f"; with `-o wide` also {wide}." if wide else "."),
    ]
    if scale := version["subresources"].get("scale"):
        parts.append(f"`kubectl scale` sets `{scale['specReplicasPath'].removeprefix('.')}`.")
    if rules := list(_rules(root, "", is_whole=False)):
        parts.append(_RULES + "\n".join(rules))
    for name in ("spec", "status"):
        section = root["properties"][name]
        parts += [f"### {spec['names']['kind']}: {name}", _text(section["description"])]
        rows = _rows(section, f"{name}.")
        parts.append("\n".join(["| field | is | |", "|---|---|---|", *rows]))
        if rules := list(_rules(section, name)):
            parts.append(_RULES + "\n".join(rules))
    return "\n\n".join(parts) + "\n"


def _rows(schema: Schema, path: str) -> Iterator[str]:
    """One line for each field below, in the order of the schema."""
    for name, field in schema.get("properties", {}).items():
        told = ["required"] if name in schema.get("required", ()) else []
        told += ["never changes"] if any(_fixes(r) and "fieldPath" not in r for r in _own_rules(field)) else []
        is_ = ", ".join([*_is(field), *told])
        yield f"| `{path}{name}` | {_cell(is_)} | {_cell(_text(field.get('description', '')))} |"
        yield from _rows(*_below(field, f"{path}{name}"))


def _below(field: Schema, path: str) -> tuple[Schema, str]:
    """What has the fields of a field: itself, or what it is a list or a map of."""
    if "items" in field:
        return _below(field["items"], f"{path}[]")
    if "additionalProperties" in field:
        return _below(field["additionalProperties"], f"{path}.*")
    return field, f"{path}."


def _is(field: Schema) -> list[str]:
    """Type, bounds and default, as words."""
    words = [_type(field)]
    unknown = field.keys() - _SILENT
    for bound, counted in _BOUNDS.items():
        low, high = field.get(f"min{bound}"), field.get(f"max{bound}")
        unknown -= {f"min{bound}", f"max{bound}"}
        if low is not None and high is not None:
            words.append(f"{low} to {high}{counted}")
        elif low is not None or high is not None:
            words.append(f"at least {low}{counted}" if high is None else f"at most {high}{counted}")
    if "enum" in field:
        words.append(" or ".join(f"`{value}`" for value in field["enum"]))
    if "pattern" in field:
        words.append(f"matches `{field['pattern']}`")
    if "format" in field and (said := _FORMATS[field["format"]]):
        words.append(said)
    match field.get("x-kubernetes-list-type"):
        case "set":
            words.append("each once")
        case "map":
            words.append(f"one for each `{', '.join(field['x-kubernetes-list-map-keys'])}`")
    if "default" in field and not isinstance(field["default"], Mapping):
        words.append(f"default `{field['default']}`")
    said_here = {"enum", "pattern", "format", "default", "x-kubernetes-list-type"}
    if unknown := unknown - said_here - {"x-kubernetes-preserve-unknown-fields"}:
        raise TypeError(f"docs/api.md has no words for {sorted(unknown)}")
    return words


def _type(field: Schema) -> str:
    if "items" in field:
        return f"list of {_one_of(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {_one_of(field['additionalProperties'])}"
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "object, with any fields" if "properties" in field else "any JSON object"
    return str(field["type"])


def _one_of(item: Schema) -> str:
    kind, *bounds = _is(item)
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _rules(schema: Schema, path: str, *, is_whole: bool = True) -> Iterator[str]:
    """The messages of all rules, also of those below (`is_whole`), but for what rows say: what never changes, and
    what is part of its field's description."""
    for rule in _own_rules(schema):
        at = f"{path}{rule.get('fieldPath', '')}".removeprefix(".")
        if not _fixes(rule) and rule["message"] not in _description(schema, rule.get("fieldPath", "")):
            yield f"* {f'`{at}`: ' if at else ''}{_text(rule['message'])}"
    if is_whole:
        for name, field in schema.get("properties", {}).items():
            below, at = _below(field, f"{path}.{name}")
            if below is not field:
                yield from _rules({**field, "properties": {}}, f"{path}.{name}")
            yield from _rules(below, at.removesuffix("."))


def _own_rules(schema: Schema) -> list[dict[str, str]]:
    rules: list[dict[str, str]] = schema.get("x-kubernetes-validations", [])
    return rules


def _fixes(rule: Mapping[str, str]) -> bool:
    """It lets its field never change."""
    return rule.get("reason") == "FieldValueForbidden" and "oldSelf" in rule["rule"]


def _description(schema: Schema, field_path: str) -> str:
    for name in filter(None, field_path.split(".")):
        schema = schema.get("properties", {}).get(name, {})
    return str(schema.get("description", ""))


def _text(text: str) -> str:
    """As Markdown: outside of code no tag begins, and other documents are links."""
    code = text.split("`")
    code[::2] = [re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", part.replace("<", "&lt;")) for part in code[::2]]
    return "`".join(code)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
