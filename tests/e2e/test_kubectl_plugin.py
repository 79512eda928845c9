"""`kubectl terrahalt` on a real cluster: what a person sees who stops a run, as docs/kubectl.md shows it.

`make recording` writes there what was seen. Else it is compared, without the times of its lines, as they differ.
"""

from __future__ import annotations

import os
import re

import pytest

from tests import cluster as test_cluster
from tests.e2e import evidence
from tests.e2e.installation import ROOT, RUNS, Installation
from tests.e2e.tasks import RunningTask
from tests.plugin.program import Program, Terminal

pytestmark = pytest.mark.cluster

DOCS = ROOT / "docs" / "kubectl.md"
EXAMPLE = "./examples/cancel.yaml"
TYPED = f"$ kubectl terrahalt run {EXAMPLE} --wait"
BEGIN, END = "<!-- recording: make recording -->\n\n```\n", "```\n\n<!-- end of the recording -->\n"
BRIEF = {"Queued", "Assigned", "Preparing", "Planning", "Gate"}
"""What may be over before the operator writes it down: the recording has it, and another run may not."""
EITHER = [
    re.compile(r"^(Interrupt +SIGINT) (?:to terraform|sent, waiting up to 60 s for terraform to stop .*)$"),
    re.compile(r"^(Preparing +)(?:preparing the working directory|terraform init)$"),
]
"""Each says one or the other: whether it was over, or the next was under way, before that was written down."""


@pytest.fixture
def plugin(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Program:
    """As kubectl itself finds it."""
    monkeypatch.chdir(ROOT)
    path = os.pathsep.join([str(test_cluster.plugin().parent), os.environ["PATH"]])
    return Program(installation.kubectl.program, {**installation.kubectl.environment, "PATH": path}, RUNS)


def test_ctrl_c_and_cancel_halt_a_run_as_the_docs_show_it(installation: Installation, plugin: Program) -> None:
    name = installation.name("recorded")
    task = RunningTask(installation, RUNS, name, name)
    installation.idle_agents(RUNS)
    own = (f"--name={name}", f"--workspace={name}")
    with plugin.at_a_terminal("terrahalt", "run", EXAMPLE, "--wait", *own) as terminal:
        terminal.until("0/1")
        task.until_child("sleep 600")
        terminal.press_ctrl_c()
        terminal.until("or detach (d, or Ctrl-C again)? ")
        assert task.phase == "Applying", task.story()
        terminal.type("cancel\n")
        assert terminal.until_ended() == 5, terminal.screen
    assert task.until_ended() == "Cancelled", task.story()
    evidence.assert_over(task)
    assert plugin("terrahalt", "logs", "-f", name) == task.kubectl("logs", task.pod_name)

    before, _, rest = DOCS.read_text().partition(BEGIN)
    recorded, _, after = rest.partition(END)
    seen = recording(terminal, task)
    if os.environ.get("TERRAHALT_RECORD"):
        assert set(map(word_of, timeless(seen))) >= BRIEF, f"not all of it was seen, record it again:\n{seen}"
        DOCS.write_text(f"{before}{BEGIN}{seen}{END}{after}")
        recorded = seen
    expected = [line for line in timeless(recorded) if line in timeless(seen) or word_of(line) not in BRIEF]
    assert timeless(seen) == expected, f"not as docs/kubectl.md shows it; if it should be so: make recording\n{seen}"


def recording(terminal: Terminal, task: RunningTask) -> str:
    """What was typed and seen, with the names that a reader would have."""
    text = terminal.text.replace(task.pod_name, "default-agent-x7k2p").replace(task.name, "cancel")
    lines = text.replace(RUNS, "team-a").strip().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in (TYPED, *lines))


def timeless(text: str) -> list[str]:
    """Its lines, without their times, and without what depends on them."""
    lines = [re.sub(r"^ +\d+\.\d\d s  ", "", line) for line in text.splitlines()]
    return [next((either[1] for each in EITHER if (either := each.match(line))), line) for line in lines]


def word_of(line: str) -> str:
    return line.partition(" ")[0]
