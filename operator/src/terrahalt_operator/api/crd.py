"""Turns a kind into its CustomResourceDefinition: a structural v1 schema without references.

Pure: what is written where is `generate`'s business. It refuses what a structural schema can't say
instead of leaving it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from . import names
from .pool import POOL
from .schema import ApiModel, Kind, Rule
from .task import TASK

KINDS = (TASK, POOL)

_ALLOWED = frozenset(
    {
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    }
)

_TYPE_META = {
    "apiVersion": {
        "type": "string",
        "description": f"The version of this kind's schema: {names.API_VERSION}.",
    },
    "kind": {"type": "string", "description": "The kind of this object."},
    "metadata": {"type": "object"},
}


def crd(kind: Kind) -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{names.GROUP}", "labels": {"app.kubernetes.io/part-of": "terrahalt"}},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                **({"shortNames": list(kind.short_names)} if kind.short_names else {}),
                "categories": [names.CATEGORY],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, **({"scale": dict(kind.scale)} if kind.scale else {})},
                    "additionalPrinterColumns": [
                        {
                            "name": column.name,
                            "type": column.type,
                            "jsonPath": column.path,
                            **({"description": column.description} if column.description else {}),
                            **({"priority": 1} if column.wide else {}),
                        }
                        for column in kind.columns
                    ],
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                }
            ],
        },
    }


def root_schema(kind: Kind) -> dict[str, Any]:
    """The schema of the kind's whole object."""
    schema = object_schema(kind.model)
    schema["properties"] = {**_TYPE_META, **schema["properties"]}
    return schema


def object_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The structural schema of a model, with everything below it."""
    raw = model.model_json_schema()
    return _structural(raw, raw.get("$defs", {}), _models_below(model), model.__name__)


def _never_changes(model: type[ApiModel], field: str) -> Rule:
    """At the field: there it costs the API server a comparison, and one level up as much again for each field beside
    it, at each write of the object."""
    return Rule("self == oldSelf", _cant_be_changed(model, field), reason="FieldValueForbidden")


def _never_comes_or_goes(model: type[ApiModel], field: str) -> Rule:
    """At the level of the model, for a field that may be absent: no rule of its own sees that."""
    same = f"has(self.{field}) == has(oldSelf.{field})"
    return Rule(same, _cant_be_changed(model, field), f".{field}", "FieldValueForbidden")


def _cant_be_changed(model: type[ApiModel], field: str) -> str:
    return f"{field} can't be changed: {model.HINT_IMMUTABLE}"


def _default(value: Any) -> Any:
    """What the API server fills in. Absent means off: nulls, false and the empty are no defaults."""
    if isinstance(value, Mapping):
        value = {key: kept for key, item in value.items() if (kept := _default(item)) is not None}
    return None if value is False or value in ("", [], {}) else value


def _models_below(model: type[ApiModel]) -> dict[str, type[ApiModel]]:
    """Every model that is reached from this one, itself too, by its name in `$defs`."""
    found = {model.__name__: model}

    def look(annotation: Any) -> None:
        if inspect.isclass(annotation) and issubclass(annotation, ApiModel):
            if found.setdefault(annotation.__name__, annotation) is not annotation:
                raise TypeError(f"two models are called {annotation.__name__}")
            for field in annotation.model_fields.values():
                look(field.annotation)
        for argument in get_args(annotation):
            look(argument)

    look(model)
    return found


def _structural(
    raw: Mapping[str, Any],
    defs: Mapping[str, Any],
    models: Mapping[str, type[ApiModel]],
    path: str,
    model_name: str = "",
    field_rules: Sequence[Rule] = (),
) -> dict[str, Any]:
    schema = {key: value for key, value in raw.items() if key not in {"title", "$defs"}}
    while True:
        if "$ref" in schema:
            model_name = schema.pop("$ref").rsplit("/", 1)[1]
            schema = {**{k: v for k, v in defs[model_name].items() if k != "title"}, **schema}
        elif "anyOf" in schema:
            some = [option for option in schema.pop("anyOf") if option != {"type": "null"}]
            if len(some) != 1:
                raise TypeError(f"{path}: a structural schema has one type, this one has {len(some)}")
            schema = {**some[0], **schema}
        else:
            break
    if "const" in schema:
        # The message of an `enum` would not say what to do; the rule of the field does.
        del schema["const"]
    default = _default(schema.pop("default", None))
    # What the operator has not written yet must not look as if it had: of a status there is only what says so.
    if default is not None and ".status." not in path:
        schema["default"] = default

    if "properties" in schema:
        # What comes as Keywords has no model, and its rules with it.
        model = models.get(model_name or path)
        fixed = model.immutable_fields() if model is not None else ()
        schema["properties"] = properties = {
            name: _structural(
                value,
                defs,
                models,
                f"{path}.{name}",
                field_rules=[_never_changes(model, name)] if model is not None and name in fixed else (),
            )
            for name, value in schema["properties"].items()
        }
        if model is not None:
            optional = (f for f in fixed if f not in schema.get("required", ()) and "default" not in properties[f])
            field_rules = (*model.RULES, *(_never_comes_or_goes(model, field) for field in optional), *field_rules)
    if field_rules:
        known = schema.get("x-kubernetes-validations", ())
        schema["x-kubernetes-validations"] = [*known, *(rule.as_schema() for rule in field_rules)]
    if isinstance(schema.get("additionalProperties"), Mapping):
        schema["additionalProperties"] = _structural(schema["additionalProperties"], defs, models, f"{path}.*")
    else:
        schema.pop("additionalProperties", None)
    if "items" in schema:
        schema["items"] = _structural(schema["items"], defs, models, f"{path}[]")
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if unknown := schema.keys() - _ALLOWED:
        raise TypeError(f"{path}: a structural schema has no {sorted(unknown)}")
    if "type" not in schema:
        raise TypeError(f"{path}: no type")
    first, last = ["type", "description"], ["properties"]
    middle = sorted(schema.keys() - {*first, *last})
    return {key: schema[key] for key in (*first, *middle, *last) if key in schema}
