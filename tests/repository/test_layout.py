"""The shape of the repository that style and imports rest on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent_terraform.cases import CASES

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("protocol", "operator", "agent_image") for path in (ROOT / folder / "src").rglob("*.py")
)


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not list(ROOT.glob("operator/__init__.py"))
    assert not list(ROOT.glob("tests/**/operator/__init__.py"))
    done = subprocess.run(
        [sys.executable, "-c", "import operator; operator.itemgetter"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_says_at_its_head_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"
    assert docstring[0].isupper() or docstring[0] == "`"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_one_idea(path: Path) -> None:
    """Over 500 lines a module's head has to give its reason."""
    lines = path.read_text().splitlines()
    assert len(lines) <= 500 or "lines because" in "\n".join(lines[:15]), f"{path} has {len(lines)} lines"


def test_every_file_of_the_behaviour_table_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = [ROOT / "operator/src/terrahalt_operator", ROOT / "agent_image/src/terrahalt_agent"]
    table = text[text.index("## Behaviour -> file") : text.index("## One run, end to end")]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(named) > 25
    missing = [name for name in named if not any((package / name).exists() for package in (*packages, ROOT))]
    assert not missing, f"ARCHITECTURE.md names files that are not there: {missing}"


def test_every_module_is_in_the_behaviour_table_or_too_small_to_decide() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    undecided = {"__init__.py", "__main__.py"}
    for package in ("operator/src/terrahalt_operator/core", "agent_image/src/terrahalt_agent/core"):
        for path in (ROOT / package).glob("*.py"):
            said = f"core/{path.name}" in text or path.name in undecided
            values_only = path.name in (
                "model.py",
                "pool_snapshot.py",
                "actions.py",
                "names.py",
                "events.py",
                "instructions.py",
                "source.py",
            )
            assert said or values_only, f"{path} decides something and is not in ARCHITECTURE.md's table"


@pytest.mark.parametrize("case", CASES)
def test_each_case_around_a_cancel_has_its_tests(case: str) -> None:
    assert CASES[case]
    for file, name in CASES[case]:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: ([a-z0-9-]+)$", makefile, re.MULTILINE))
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets
    for target in targets:
        assert re.search(rf"^  {re.escape(target)} ", shown, re.MULTILINE), f"`make` does not list {target}"
