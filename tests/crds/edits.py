"""Every single change that a schema allows to a value: each property and item added, changed, removed.

Generated from the CRD's own schema, so that a field that is added to the API tomorrow is tried too.
Knows no field by name; what a pattern can't say (a rule in CEL) is given by path. Used by test_rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from random import Random
from typing import Any

from hypothesis import find, settings
from hypothesis import strategies as st

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Edit:
    name: str
    before: Any
    after: Any

    @property
    def sides(self) -> tuple[Any, Any]:
        return self.before, self.after


@dataclass(frozen=True)
class Values:
    given: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Path -> two values, where the schema alone does not lead to good ones."""

    def whole(self, schema: Schema, path: str, *, second: bool = False, member: str = "") -> Any:
        """A value with every property that it can have, none with its default; of a union, one member."""
        if path in self.given:
            return self.given[path][second]
        if "enum" in schema:
            return [value for value in schema["enum"] if value != schema.get("default")][second]
        match schema["type"]:
            case "object" if "properties" in schema:
                left_out = set(members(schema)) - {member or next(iter(members(schema)), "")}
                below = {name: s for name, s in schema["properties"].items() if name not in left_out}
                return {name: self.whole(s, f"{path}.{name}", second=second) for name, s in below.items()}
            case "object" if isinstance(schema.get("additionalProperties"), Mapping):
                one = self.whole(schema["additionalProperties"], f"{path}.*", second=second)
                return {"first": one, "second": one}
            case "object":
                return {"first": {"deep": [int(second)]}, "second": None}
            case "array":
                return [self.whole(schema["items"], f"{path}[]", second=second)] * 2
            case "boolean":
                return not second
            case "integer":
                low = schema.get("minimum", 0)
                return [n for n in (low, low + 1, low + 2) if n != schema.get("default")][second]
            case "string":
                return _strings(schema.get("pattern", ""), schema.get("minLength", 0), schema.get("default"))[second]
        raise AssertionError(f"{path}: no values of {schema['type']}")

    def edits(self, schema: Schema, path: str) -> Iterator[Edit]:
        """Each changes one thing of a whole value; adding is removing the other way round."""
        if path in self.given or "enum" in schema or schema["type"] in ("boolean", "integer", "string"):
            first, second = (self.whole(schema, path, second=s) for s in (False, True))
            yield Edit(f"change {path}", first, second)
        elif schema["type"] == "array":
            whole = self.whole(schema, path)
            for edit in self.edits(schema["items"], f"{path}[]"):
                yield Edit(edit.name, [edit.before], [edit.after])
            yield from _both_ways(f"{path}[]", whole[:1], whole)
        elif "properties" in schema:
            yield from self._edits_of_object(schema, path)
        else:
            first, second = (self.whole(schema, path, second=s) for s in (False, True))
            yield Edit(f"change {path}.*", first, second)
            yield from _both_ways(f"{path}.*", {"first": first["first"]}, first)

    def _edits_of_object(self, schema: Schema, path: str) -> Iterator[Edit]:
        union = members(schema)
        for member in union or [""]:
            whole = self.whole(schema, path, member=member)
            for name in whole:
                if union and name not in union and member != union[0]:
                    continue  # it was tried beside the first member
                for edit in self.edits(schema["properties"][name], f"{path}.{name}"):
                    yield Edit(edit.name, whole | {name: edit.before}, whole | {name: edit.after})
                if name not in {*union, *schema.get("required", ())}:
                    without = {key: value for key, value in whole.items() if key != name}
                    yield from _both_ways(f"{path}.{name}", without, whole)
        for one, other in permutations(union, 2):
            values = [self.whole(schema, path, member=member) for member in (one, other)]
            yield Edit(f"change {path} from {one} to {other}", *values)


def members(schema: Schema) -> list[str]:
    """The properties of which exactly one is there, as the rule in CEL says it."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "exactly one" in rule["message"]:
            return [name for name in schema["properties"] if re.search(rf"\bself\.{name}\b", rule["rule"])]
    return []


def _both_ways(path: str, without: Any, whole: Any) -> Iterator[Edit]:
    yield Edit(f"add {path}", without, whole)
    yield Edit(f"remove {path}", whole, without)


@cache
def _strings(pattern: str, min_length: int, default: str | None) -> tuple[str, str]:
    """The two simplest that the pattern allows."""
    strategy = st.from_regex(pattern) if pattern else st.text(min_size=min_length)

    def simplest(*but: str | None) -> str:
        plain = settings(database=None, max_examples=500)
        found = find(strategy, lambda s: s not in but and len(s) >= min_length, settings=plain, random=Random(0))
        return str(found)

    first = simplest(default)
    return first, simplest(default, first)
