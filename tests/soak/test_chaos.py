"""Chaos on two nodes: every fault that there is, several at once, round after round, and every invariant holds.

`--rounds` says how many (`make chaos`), `--round` the first of them, `--seed` repeats the same ones. What may happen is
in `chaos_plan`, how it is done in `troubles` and `faults`, what has to be true afterwards in `judge` and `remains`.
It goes on after a round that broke something, so that one run tells whether it is one fault or many.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.installation import SOAK, Installation
from tests.soak import judge, remains
from tests.soak.chaos_plan import plan
from tests.soak.random_tasks import spread
from tests.soak.troubles import Round

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone]

BROKEN_AT_MOST = 5
"""Then it is one fault, and the next hour would not tell more."""
IDLE_OF_OTHERS = 2


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> range:
    """The numbers of those to be done."""
    count: int = request.config.getoption("--rounds") or pytest.skip("--rounds 0")
    first: int = request.config.getoption("--round") or 0
    return range(first, first + count)


@pytest.fixture
def battlefield(rounds: range, soak: Installation) -> Iterator[Installation]:
    """A kind cluster of two nodes."""
    cluster = soak.cluster
    if not cluster.is_ours or not cluster.workers:
        pytest.skip("needs a kind cluster of two nodes: make cluster-down, then make chaos")
    for pool in soak.soak_pools[1:]:
        soak.scale_pool(SOAK, IDLE_OF_OTHERS, pool)
    soak.watch_states()
    yield soak
    soak.bring_nodes_back()


def test_chaos_breaks_no_invariant(
    battlefield: Installation, rounds: range, seed: int, say: Callable[[str], None]
) -> None:
    told = Told(seed, rounds.start)
    print(f"\nchaos, seed {seed}, rounds {rounds.start} to {rounds.stop - 1}", flush=True)
    try:
        for number in rounds:
            began = time.monotonic()
            _stand_ready(battlefield)
            cluster = battlefield.cluster
            pools = battlefield.soak_pools
            round_ = Round(
                battlefield, plan(seed, number, pools=pools, nodes=cluster.nodes, may_freeze=cluster.workers)
            )
            found = _broken_by(round_)
            told.note(round_, time.monotonic() - began, is_broken=bool(found))
            if found:
                again = f"BROKEN, make chaos SEED={seed} ROUND={number} repeats it"
                print("\n\n".join([again, round_.story(), *found]), flush=True)
                if len(told.broken) == BROKEN_AT_MOST:
                    break
                battlefield.end_leftovers()
                battlefield.bring_nodes_back()
            else:
                round_.clear_away()
                battlefield.timeline.forget_ended()
    finally:
        # Also of a trial that was stopped: the next one goes on.
        for line in told.lines():
            say(line)
    assert not told.broken, f"rounds {told.broken} of --seed {seed} broke an invariant; each is told above"


@dataclass
class Told:
    """What has been done so far, and what came of it."""

    seed: int
    first: int
    done: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def note(self, round_: Round, took_s: float, *, is_broken: bool) -> None:
        """And says it in a line."""
        faults = Counter(step.trouble.name for step in round_.done)
        ends = Counter(life.task.phase if life.task.end else "gone without an end" for life in round_.lives)
        self.done.update(step.trouble.value for step in round_.done)
        self.missed.update(step.trouble.value for step in round_.plan.steps if step not in round_.done)
        self.ends.update(ends)
        self.took_s.append(took_s)
        if is_broken:
            self.broken.append(round_.plan.number)
        print(f"{round_.plan.number}: {took_s:.1f} s; {_counted(faults) or 'nothing'} -> {_counted(ends)}", flush=True)

    def lines(self) -> Iterator[str]:
        verdict = f"{len(self.broken)} of them broken {self.broken or ''}"
        yield f"chaos, seed {self.seed}: {len(self.took_s)} rounds from {self.first} on, {verdict}"
        yield f"  ends: {_counted(self.ends)}"
        for what in sorted(self.done | self.missed):
            yield f"  {self.done[what]:5} times (and {self.missed[what]:3} with nothing to do it to): {what}"
        yield f"  a round: {spread(self.took_s)}"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" if count > 1 else what for what, count in sorted(counter.items()))


def _stand_ready(here: Installation) -> None:
    """One leads, one stands by, agents wait: what the round before has cost does not count in this one."""
    here.renew_operators()
    here.wait_for_standby()
    for pool in here.soak_pools:
        here.wait_for_idle(SOAK, IDLE_OF_OTHERS, pool=pool)


def _broken_by(round_: Round) -> list[str]:
    try:
        round_.run()
    except AssertionError as problem:
        return [str(problem)]
    return judge.violations(round_) + remains.violations(round_)
