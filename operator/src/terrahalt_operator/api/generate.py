"""Writes the CRDs, their copies in the charts and docs/api.md from the models:
`python -m terrahalt_operator.api.generate`.

With `--check` it writes nothing, shows what differs and exits with 1. Called by `make generate`
and `make lint`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

import yaml

from . import names
from .crd import KINDS, crd
from .reference import reference

COMMAND = "PYTHONPATH=protocol/src:operator/src python -m terrahalt_operator.api.generate"
_HEAD = (
    "# Generated from operator/src/terrahalt_operator/api. Do not edit: change the models there, then run\n"
    f"# {COMMAND}\n"
)
_DOCUMENT_HEAD = f"<!--\n{_HEAD}-->\n\n"
_KEEP = {"helm.sh/resource-policy": "keep"}


class _Dumper(yaml.SafeDumper):
    """Lists indented under their key, as people write them; no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _yaml(document: dict[str, Any]) -> str:
    # The safe dumper knows str by its exact type only, not the enums.
    return yaml.dump(_plain(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case str():
            return str(value)
        case _:
            return value


def files() -> dict[Path, str]:
    """Every generated file, by its path in the repository."""
    written: dict[Path, str] = {}
    for kind in KINDS:
        document = crd(kind)
        text = _HEAD + _yaml(document)
        if "{{" in text:
            raise ValueError(f"{kind.plural}: two braces in a row would be a template in charts/terrahalt-crds")
        written[Path("crds", f"{kind.plural}.yaml")] = text
        written[Path("charts/terrahalt/crds", f"{kind.plural}.yaml")] = text
        document["metadata"]["annotations"] = _KEEP
        written[Path("charts/terrahalt-crds/templates", f"{kind.plural}.yaml")] = _HEAD + _yaml(document)
    written[Path("docs/api.md")] = _DOCUMENT_HEAD + reference(map(crd, KINDS))
    return written


def differences(root: Path) -> str:
    """The unified diff from what is in `root` to what should be there; empty if they are equal."""
    parts: list[str] = []
    expected = files()
    for path, text in expected.items():
        file = root / path
        found = file.read_text() if file.exists() else ""
        parts += difflib.unified_diff(
            found.splitlines(keepends=True), text.splitlines(keepends=True), str(path), f"{path} (generated)"
        )
    for folder in sorted({path.parent for path in expected}):
        for file in sorted((root / folder).glob("*.yaml")):
            if file.relative_to(root) not in expected:
                parts.append(f"{file.relative_to(root)}: nothing generates it; remove it\n")
    return "".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="terrahalt_operator.api.generate", description=f"The CRDs of {names.GROUP}, and their reference."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file differs from its source")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository; default: the current folder")
    options = parser.parse_args(arguments)
    if options.check:
        if difference := differences(options.root):
            sys.stdout.write(f"{difference}\nthe generated files differ from the models: run\n  {COMMAND}\n")
            return 1
        return 0
    for path, text in files().items():
        (options.root / path).parent.mkdir(parents=True, exist_ok=True)
        (options.root / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
