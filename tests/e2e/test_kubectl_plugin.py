"""`kubectl terrahalt` on a real cluster: what a person sees who stops a run, as docs/kubectl.md shows it.

With TERRAHALT_RECORD=1 what was seen is written there.
"""

from __future__ import annotations

import os

import pytest

from tests import cluster as test_cluster
from tests.e2e import evidence
from tests.e2e.installation import ROOT, RUNS, Installation
from tests.e2e.tasks import RunningTask
from tests.plugin.program import Program

pytestmark = pytest.mark.cluster

DOCS = ROOT / "docs" / "kubectl.md"
EXAMPLE = "examples/cancel.yaml"
BEGIN, END = (
    "<!-- recording: TERRAHALT_RECORD=1 .venv/bin/pytest tests/e2e/test_kubectl_plugin.py -->\n",
    "<!-- end of the recording -->\n",
)


def record(screen: str) -> None:
    before, _, rest = DOCS.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    lines = "\n".join(line.rstrip() for line in screen.strip().splitlines())
    DOCS.write_text(f"{before}{BEGIN}\n```\n$ kubectl terrahalt run -f {EXAMPLE} --wait\n{lines}\n```\n\n{END}{after}")


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
    if os.environ.get("TERRAHALT_RECORD"):
        record(
            terminal.text.replace(task.pod_name, "default-agent-x7k2p").replace(name, "cancel").replace(RUNS, "team-a")
        )
