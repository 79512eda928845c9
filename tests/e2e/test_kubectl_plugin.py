"""`kubectl terrahalt` on a real cluster: what a person sees who stops a run, as docs/kubectl.md shows it."""

from __future__ import annotations

import re

import pytest

from tests import cluster as test_cluster
from tests.e2e import evidence
from tests.e2e.installation import ROOT, RUNS, Installation
from tests.e2e.tasks import RunningTask
from tests.plugin.program import Program

pytestmark = pytest.mark.cluster

DOCS = ROOT / "docs" / "kubectl.md"
EXAMPLE = "examples/cancel.yaml"
BEGIN, END = "<!-- recording: tests/e2e/test_kubectl_plugin.py writes it -->\n", "<!-- end of the recording -->\n"


def record(screen: str) -> None:
    """Puts it into the docs, unless they have the same but for its times."""
    before, _, rest = DOCS.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    new = f"\n```\n$ kubectl terrahalt run -f {EXAMPLE} --wait\n{screen.strip()}\n```\n\n"
    if _without_times(old) != _without_times(new):
        DOCS.write_text(before + BEGIN + new + END + after)


def _without_times(text: str) -> str:
    return re.sub(r" *\d+\.\d\d s", " 0.00 s", text)


def test_ctrl_c_and_cancel_halt_a_run_as_the_docs_show_it(installation: Installation) -> None:
    plugin = Program(test_cluster.plugin(), installation.kubectl.environment, RUNS)
    name = installation.name("recorded")
    task = RunningTask(installation, RUNS, name, name)
    own = (f"--filename={ROOT / EXAMPLE}", f"--name={name}", f"--workspace={name}")
    with plugin.at_a_terminal("run", *own, "--wait") as terminal:
        terminal.until("Applying")
        task.until_child("sleep 600")
        terminal.press_ctrl_c()
        terminal.until("or detach (d, or Ctrl-C again)? ")
        assert task.phase == "Applying", task.story()
        terminal.type("c\n")
        assert terminal.until_ended() == 5, terminal.screen
    assert task.until_ended() == "Cancelled", task.story()
    evidence.assert_over(task)
    assert [p for p in task.processes if p.gone is None] == [], task.story()
    for words in ("sent ", "Interrupt ", "exited ", "swept ", "Cancelled "):
        assert words in terminal.text
    assert plugin("logs", "-f", name) == task.kubectl("logs", task.pod_name)
    record(terminal.text.replace(task.pod_name, "default-agent-x7k2p").replace(name, "cancel").replace(RUNS, "team-a"))
