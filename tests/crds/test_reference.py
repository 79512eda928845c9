"""docs/api.md tells what the CRDs enforce, and nothing that they do not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from terrahalt_operator.api.crd import KINDS, crd
from terrahalt_operator.api.reference import reference
from tests.crds.api_server import ROOT

TEXT = (ROOT / "docs/api.md").read_text()

FIXED = {
    "reason": "FieldValueForbidden",
    "rule": "self == oldSelf",
    "message": "size can't be changed: make another one",
}
SPEC = {
    "type": "object",
    "description": "What it should be.",
    "required": ["size"],
    "x-kubernetes-validations": [{"rule": "self.size != 3", "message": "size 3 is taken", "fieldPath": ".size"}],
    "properties": {
        "size": {
            "type": "integer",
            "description": "Its size.",
            "minimum": 1,
            "maximum": 9,
            "format": "int32",
            "x-kubernetes-validations": [FIXED],
        },
        "name": {"type": "string", "description": "As in `<x>`, not <x>.", "pattern": "^a|b$", "default": "a"},
        "tags": {
            "type": "array",
            "description": "See docs/pools.md.",
            "maxItems": 4,
            "x-kubernetes-list-type": "set",
            "items": {
                "type": "object",
                "x-kubernetes-validations": [{"rule": "has(self.key)", "message": "a tag needs a key"}],
                "properties": {"key": {"type": "string", "description": "Its key.", "enum": ["A", "B"]}},
            },
        },
    },
}
CRD: dict[str, Any] = {
    "spec": {
        "group": "example.dev",
        "names": {"kind": "Thing", "plural": "things", "singular": "thing", "shortNames": ["th"]},
        "versions": [
            {
                "name": "v1",
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size"}},
                "additionalPrinterColumns": [{"name": "Size"}, {"name": "Reason", "priority": 1}],
                "schema": {
                    "openAPIV3Schema": {
                        "description": "A thing.",
                        "properties": {"spec": SPEC, "status": {"description": "What it is.", "properties": {}}},
                    }
                },
            }
        ],
    }
}
SECTION = """\
## Thing

A thing.

For kubectl: `things`, `thing`, `th`. `kubectl get` shows Size; with `-o wide` also Reason.

`kubectl scale` sets `spec.size`.

### Thing: spec

What it should be.

| field | is | |
|---|---|---|
| `spec.size` | integer, 1 to 9, required, never changes | Its size. |
| `spec.name` | string, matches `^a\\|b$`, default `a` | As in `<x>`, not &lt;x>. |
| `spec.tags` | list of object, at most 4 entries, each once | See [pools.md](pools.md). |
| `spec.tags[].key` | string, `A` or `B` | Its key. |

What breaks one of these rules is refused, in these words:

* `spec.size`: size 3 is taken
* `spec.tags[]`: a tag needs a key

### Thing: status

What it is.

| field | is | |
|---|---|---|
"""


def below(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below, with its path as people write it."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from below(field, f"{path}.{name}")
    if isinstance(items := schema.get("items"), dict):
        yield f"{path}[]", items
        yield from below(items, f"{path}[]")


ALL = [
    (kind, path.removeprefix("."), field)
    for kind, root in ((k.kind, crd(k)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) for k in KINDS)
    for path, field in [("", root), *below(root, "")]
    if path.split(".")[-1] not in ("apiVersion", "kind") and path != ".metadata"
]


def section(kind: str) -> str:
    return TEXT.partition(f"## {kind}\n")[2].partition("\n## ")[0]


def test_a_kind_is_told_with_types_bounds_defaults_rules_and_what_never_changes() -> None:
    text = reference([CRD])
    assert text.startswith("# The API, field by field\n\nTwo kinds of `example.dev/v1`.")
    assert text[text.index("## Thing") :] == SECTION


def test_a_keyword_that_it_has_no_words_for_is_not_left_out_in_silence() -> None:
    strange = copy.deepcopy(CRD)
    size = strange["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]
    size["multipleOf"] = 2
    with pytest.raises(TypeError, match="multipleOf"):
        reference([strange])


def test_every_field_of_both_kinds_is_a_row() -> None:
    fields = [(kind, path) for kind, path, _ in ALL if "." in path and not path.endswith("[]")]
    assert len(fields) > 150
    assert not [(kind, path) for kind, path in fields if f"| `{path}` | " not in section(kind)]


def test_the_message_of_every_rule_is_there_or_its_field_never_changes() -> None:
    rules = [(kind, path, rule) for kind, path, field in ALL for rule in field.get("x-kubernetes-validations", [])]
    assert len(rules) > 60
    for kind, path, rule in rules:
        row = f"| `{path}{rule.get('fieldPath', '')}` | "
        is_fixed = "oldSelf" in rule["rule"] and any(
            line.startswith(row) and "never changes" in line for line in section(kind).splitlines()
        )
        assert is_fixed or rule["message"].replace("<", "&lt;") in section(kind), rule
