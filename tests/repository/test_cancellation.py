"""docs/cancellation.md is read when something is wrong: what the code can say has to be in it, and nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from terrahalt_agent.core.ladder import Times
from terrahalt_operator.core import model
from terrahalt_operator.core.model import CancelStatus, ResultStatus
from terrahalt_protocol import state_lock
from terrahalt_protocol.messages import LockCondition, Rung, StateCondition
from tests.e2e.tasks import CANCEL
from tests.e2e.test_abandon import ABANDON
from tests.e2e.test_cancel import FORCE
from tests.e2e.test_states import BACKEND
from tests.repository import reasons
from tests.repository.reasons import ROOT

TEXT = (ROOT / "docs/cancellation.md").read_text()
DRAWING = ROOT / "docs/cancellation.svg"
TIMES = Times()


def section(title: str) -> str:
    start = TEXT.index(f"# {title}")
    level = "\n" + TEXT[TEXT.rindex("\n", 0, start) + 1 : start] + "# "
    end = TEXT.find(level, start)
    return TEXT[start : end if end >= 0 else None]


def quoted(text: str) -> set[str]:
    """Words in CamelCase that stand as code."""
    return set(re.findall(r"`([A-Z][A-Za-z]+)`", text))


def first_cells(title: str) -> set[str]:
    cells = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return quoted(" ".join(cells))


def test_it_has_every_reason_and_no_other() -> None:
    assert len(reasons.of_ends()) > 20
    assert first_cells("reason: why it ended") - model.TERMINAL == reasons.of_ends()


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("rung: how far the cancel had to go", Rung),
        ("state: what terraform has on record", StateCondition),
        ("lock: who has it", LockCondition),
    ],
)
def test_it_has_every_word_of_a_result_and_no_other(title: str, words: type[Rung]) -> None:
    assert first_cells(title) == {word.value for word in words}


def test_it_has_every_rung_with_its_time() -> None:
    rows = {
        Rung.GATE: (TIMES.freeze_s, TIMES.gate_s, TIMES.gate_force_s),
        Rung.INTERRUPT: (TIMES.plan_grace_s, TIMES.init_grace_s),
        Rung.KILL_PROVIDERS: (TIMES.kill_providers_s,),
        Rung.SECOND_INTERRUPT: (TIMES.second_interrupt_s,),
        Rung.KILL: (TIMES.kill_s,),
    }
    assert {Rung.NOT_STARTED, *rows} == set(Rung)
    way = section("The way of a cancel")
    for rung, times_s in rows.items():
        (row,) = [line for line in way.splitlines() if line.startswith(f"| `rung: {rung}`")]
        last_cell = row.split("|")[-2]
        assert re.findall(r"(\d+) s", last_cell) == [f"{time_s:.0f}" for time_s in times_s], row


def test_it_has_the_times_of_what_comes_after_the_rungs() -> None:
    way = " ".join(section("The way of a cancel").split())
    between_s = TIMES.kill_providers_s + TIMES.second_interrupt_s
    for text in (
        f"| {TIMES.settle_max_s:.0f} s |",
        f"| {TIMES.sweeps} tries of {TIMES.sweep_s:.0f} s |",
        f"read to its end. | {TIMES.drain_s:.0f} s |",
        f"| {TIMES.aftermath_s:.0f} s; {TIMES.keep_errored_s:.0f} s more",
        f"({TIMES.keep_errored_in_haste_s:.0f} s in a pod that is ending)",
        f"gets {between_s:.0f} s more",
    ):
        assert text in way


@pytest.mark.parametrize(("kind", "prefix"), [(CancelStatus, "cancel"), (ResultStatus, "result")])
def test_it_has_every_field_that_tells_of_an_end(kind: type[msgspec.Struct], prefix: str) -> None:
    for field in msgspec.structs.fields(kind):
        assert re.search(rf"`({prefix}\.|status\.{prefix}\.)?{field.encode_name}[`:]", TEXT), field.encode_name


@pytest.mark.parametrize(
    "command",
    [
        state_lock.look_command("team-a", "network"),
        state_lock.release_command("team-a", "network", "ID"),
        f"kubectl -n team-a patch terraformtask network --type merge -p '{CANCEL}'",
        f"kubectl -n team-a patch terraformtask network --type merge -p '{FORCE}'",
        BACKEND % ("network", "team-a"),
    ],
)
def test_its_commands_are_those_that_are_told_and_tried(command: str) -> None:
    assert command in TEXT


def test_the_way_to_abandon_that_it_names_is_the_one_that_is_tried() -> None:
    assert "security.md#when-a-node-is-gone-for-good" in TEXT
    assert ABANDON in (ROOT / "docs/security.md").read_text()


def test_the_drawing_has_every_rung_and_every_time_of_the_status() -> None:
    root = ET.parse(DRAWING).getroot()
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {rung.value for rung in Rung} - {Rung.NOT_STARTED.value} <= set(texts)
    for field in msgspec.structs.fields(CancelStatus):
        is_time_or_rung = field.name not in ("by", "superseded_by")
        assert not is_time_or_rung or any(re.search(rf"\.{field.encode_name}\b", text) for text in texts), field.name
    for time_s in (TIMES.kill_providers_s, TIMES.second_interrupt_s, TIMES.kill_s):
        assert f"{time_s:.0f} s" in texts


@pytest.mark.parametrize("path", sorted((*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"))), ids=lambda p: p.name)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    without_code = re.sub(r"`[^`\n]+`", "", path.read_text())
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#?([^):\s]*)\)", without_code):
        there = path.parent / target if target else path
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
