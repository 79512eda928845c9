"""What the documents tell people to type exists: targets, examples, values of the chart, commands of the plugin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")))
FIRST_TASK = (ROOT / "docs/first-task.md").read_text()
EXAMPLES = {
    path: [document for document in yaml.safe_load_all(path.read_text()) if document["kind"] == "TerraformTask"]
    for path in (ROOT / "examples").glob("*.yaml")
}
GO = {path.stem: path.read_text() for path in (ROOT / "kubectl_plugin").glob("*.go")}


def commands(text: str) -> str:
    """What stands as code, in blocks and in lines; a line that goes on is one."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *lines]).replace("\\\n", " ")


def of_plugin(text: str) -> list[tuple[str, set[str]]]:
    """Each call of it, as its command and the long flags."""
    calls = re.findall(r"kubectl terrahalt ([a-z]+)([^\n#|]*)", commands(text))
    return [(command, set(re.findall(r" --([a-z-]+)", rest))) for command, rest in calls]


def flags_of(source: str) -> set[str]:
    return set(re.findall(r'Var(?:P)?\(&[\w.]+, "([a-z-]+)"', source))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_target_and_example_that_it_names_is_there(document: Path) -> None:
    text = commands(document.read_text())
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^## ([a-z0-9-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake (?:-s )?([a-z][a-z0-9-]*)", text)) <= targets
    for example in re.findall(r"\bexamples/[\w-]+\.yaml", document.read_text()):
        assert (ROOT / example).exists(), example


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_call_of_the_plugin_is_one_that_it_knows(document: Path) -> None:
    for command, flags in of_plugin(document.read_text()):
        assert command in GO, command
        assert flags <= flags_of(GO[command]) | flags_of(GO["output"]) | {"help"}, command


def test_the_first_task_is_there_in_plugin_and_examples() -> None:
    assert {command for command, _ in of_plugin(FIRST_TASK)} == {"run", "status", "logs", "cancel", "approve"}
    used = [EXAMPLES[ROOT / name] for name in re.findall(r"create -f (examples/[\w-]+\.yaml)", FIRST_TASK)]
    assert len(used) == 4
    tasks = {task["metadata"]["name"] for tasks in used for task in tasks}
    named = re.findall(r"(?:terraformtask[ /]|last-task=)([a-z0-9-]+)", commands(FIRST_TASK))
    assert {*named, "destroy"} == tasks
    workspaces = {task["spec"]["workspace"] for tasks in used for task in tasks}
    assert set(re.findall(r"tfstate-default-([a-z0-9-]+)-tf", FIRST_TASK)) <= workspaces


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs/first-task.md"], ids=lambda path: path.name)
def test_every_value_that_the_chart_is_given_is_one_of_its_values(document: Path) -> None:
    values: dict[str, Any] = yaml.safe_load((ROOT / "charts/terrahalt/values.yaml").read_text())
    given = re.findall(r"--set(?:-json)? '?([\w.]+)=", commands(document.read_text()))
    assert len(given) >= 2
    for path in given:
        at: Any = values
        for name in path.split("."):
            assert name in at, path
            at = at[name]
