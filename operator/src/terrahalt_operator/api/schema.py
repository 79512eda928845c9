"""The language the kinds are written in: models whose schema the API server enforces.

`Keywords` and `Rule` go into the CRD and are *not* checked again when an object is parsed: what an
API server has let in, under this version's bounds or another's, must always be readable, or a task
could not be cancelled. Unknown fields are ignored for the same reason. Used by `task` and `pool`;
`crd` turns it into a structural schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, PlainSerializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_INITIALISMS = frozenset({"id", "uid"})


def camel(name: str) -> str:
    """`pod_uid` -> `podUID`, as the Kubernetes API conventions spell it."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word in _INITIALISMS else word.capitalize() for word in rest)


class Keywords:
    """OpenAPI keywords beside a type: `Annotated[int, Keywords(minimum=1)]`."""

    def __init__(self, **keywords: Any) -> None:
        self._keywords = keywords

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), **self._keywords}


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule on a model; `message` says what to do, not only what is wrong."""

    rule: str
    message: str
    field_path: str = ""
    """Under the model, as in `.spec`; empty: the model itself."""
    reason: str = ""
    """One of the four of the API server; empty: FieldValueInvalid."""

    def as_schema(self) -> dict[str, str]:
        optional = {"fieldPath": self.field_path, "reason": self.reason}
        return {"rule": self.rule, "message": self.message, **{key: text for key, text in optional.items() if text}}


def rules(*rules: Rule) -> Keywords:
    """Of a field alone, beside its type. There `self` is its value, which costs nothing: a rule of the model pays for
    each field of it that it names as much as there are fields beside that, at each write of the object."""
    return Keywords(**{"x-kubernetes-validations": [rule.as_schema() for rule in rules]})


class ApiModel(BaseModel):
    """A part of an object of ours. A field's docstring is its description in the CRD."""

    model_config = ConfigDict(
        alias_generator=camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    MUTABLE: ClassVar[frozenset[str] | None] = None
    """The fields (by their names in Python) that may change; None: all. `crd` makes a rule of each other one."""
    HINT_IMMUTABLE: ClassVar[str] = ""
    """What to do instead of a change, appended to the message of those rules."""

    @classmethod
    def immutable_fields(cls) -> tuple[str, ...]:
        """The names in the API of the fields that never change, in the order of the model."""
        if cls.MUTABLE is None:
            return ()
        unknown = cls.MUTABLE - cls.model_fields.keys()
        if unknown:
            raise TypeError(f"{cls.__name__}.MUTABLE names no field: {sorted(unknown)}")
        return tuple(camel(name) for name in cls.model_fields if name not in cls.MUTABLE)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a CRD says of its kind besides the schema."""

    kind: str
    plural: str
    singular: str
    model: type[ApiModel]
    columns: tuple[Column, ...]
    short_names: tuple[str, ...] = ()
    scale: Mapping[str, str] = field(default_factory=dict)
    """The scale subresource; empty: none."""


def _rfc3339_micro(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[datetime, PlainSerializer(_rfc3339_micro, return_type=str), Keywords(format="date-time")]
"""Always six digits of a second, so that the stages of a cancel can be told apart, and sorted as text."""

DnsName = Annotated[str, Keywords(minLength=1, maxLength=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of an object that Kubernetes itself checks elsewhere."""
