"""The simulator itself: the same seed gives the same history anywhere, what failed once is played again, a failure is
told as a short story."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import kept
from tests.simulation.__main__ import main
from tests.simulation.bugs import BUGS, Bug, planted
from tests.simulation.history import MOVES, History, of_seed, replayed, shrunk, story
from tests.simulation.simulation import Setting, Simulation

ROOT = Path(__file__).resolve().parents[2]
KEPT = list(kept.read(kept.FILE.read_text(encoding="utf-8")))
TELL = "from tests.simulation.history import of_seed, story\nfor n in range(6): print(story(of_seed(n)))"


@pytest.mark.parametrize("each", KEPT, ids=lambda each: each.what)
def test_what_failed_once_does_not_fail_again(each: kept.Kept) -> None:
    assert replayed(each.history.setting, each.history.moves).violation == ""


def test_a_seed_gives_the_same_history_in_every_process_whatever_the_order_of_its_sets() -> None:
    def told(hash_seed: str) -> str:
        path = os.pathsep.join(str(ROOT / part) for part in ("protocol/src", "operator/src", "agent_image/src"))
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        return subprocess.check_output([sys.executable, "-c", TELL], cwd=ROOT, env=env, text=True)

    assert told("1") == told("2") != ""


def test_the_moves_of_a_history_alone_give_it_again() -> None:
    for seed in range(5):
        history, lines = of_seed(seed), list[str]()
        assert replayed(history.setting, history.moves, lines.append) == history
        assert lines == story(history)[:-1]


def test_every_move_can_be_made_and_says_whether_it_was() -> None:
    simulation = Simulation()
    for name in MOVES:
        assert isinstance(getattr(simulation, name)(0), bool)


def easy_to_find() -> Bug:
    return next(each for each in BUGS if each.what == "no claim is made")


def test_a_failing_history_is_shrunk_to_a_few_moves_that_fail_alike() -> None:
    with planted(easy_to_find()):
        long = next(history for history in map(of_seed, range(100)) if history.violation)
        short = shrunk(long)
        assert len(short.moves) < min(len(long.moves), 12)
        assert short.violation[:2] == long.violation[:2]
        assert replayed(short.setting, short.moves) == short
        assert story(short)[-1] == short.violation


def test_a_failure_is_told_with_the_command_that_repeats_it_and_the_text_that_keeps_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with planted(easy_to_find()):
        assert main(["--seeds", "100", "--seed", "0", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    seed = said.partition("To see it again: make simulate SEEDS=1 SEED=")[2].split()[0]
    (again,) = kept.read(said[said.index("\n# what this shows") :].partition("\n\n")[0])
    with planted(easy_to_find()):
        assert of_seed(int(seed)).violation
        assert replayed(again.history.setting, again.history.moves).violation


def test_fresh_seeds_are_printed_and_well_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "20", "--jobs", "1", "--moves"]) == 0
    said = capsys.readouterr().out
    assert "make simulate SEEDS=20 SEED=" in said
    assert "20 histories, " in said
    assert " 0 violations; median " in said
    assert "  a_worker_goes_on\n" in said


def test_what_was_played_is_told_by_its_range_so_that_a_million_seeds_may_take_several_sittings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for first in (100, 104):
        assert main(["--seeds", "4", "--seed", str(first), "--jobs", "1"]) == 0
    told = [line.partition(" violations")[0] for line in capsys.readouterr().out.splitlines()]
    one, two = (sum(len(of_seed(seed).moves) for seed in range(first, first + 4)) for first in (100, 104))
    assert told[1::2] == [
        f"seeds 100 to 103: 4 histories, {one} moves, 0",
        f"seeds 104 to 107: 4 histories, {two} moves, 0",
    ]


def test_a_kept_history_that_can_not_be_read_is_an_error() -> None:
    history = History(Setting(), (("time_passes", 3), ("a_kubelet_acts", 0)) * 20)
    (again,) = kept.read(kept.as_text("a head", history))
    assert (again.what, again.history) == ("a head", history)
    with pytest.raises(ValueError, match="a head: no such moves: tyme_passes"):
        list(kept.read("# a head\n{}\ntyme_passes 3\n"))
    with pytest.raises(ValueError, match="is the setting"):
        list(kept.read("# a head\ntime_passes 3\n"))
