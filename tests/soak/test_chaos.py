"""Chaos on two nodes: every fault that there is, several at once, round after round, and every invariant holds.

`--rounds` says how many (`make chaos`), `--round` the first of them, `--seed` repeats the same ones. What may happen is
in `chaos_plan`, how it is done in `troubles` and `faults`, what has to be true afterwards in `judge` and `remains`.
It goes on after a round that broke something, so that one run tells whether it is one fault or many.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.installation import SOAK, Installation
from tests.soak import judge, remains
from tests.soak.chaos_plan import plan
from tests.soak.random_tasks import spread
from tests.soak.troubles import Round

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

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
    here = battlefield
    done: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    took_s: list[float] = []
    broken: list[int] = []
    print(f"\nchaos, seed {seed}, rounds {rounds.start} to {rounds.stop - 1}", flush=True)
    for number in rounds:
        began = time.monotonic()
        _stand_ready(here)
        round_ = Round(
            here,
            plan(seed, number, pools=here.soak_pools, nodes=here.cluster.nodes, may_freeze=here.cluster.workers),
        )
        found = _broken_by(round_)
        took_s.append(time.monotonic() - began)
        done.update(step.trouble.value for step in round_.done)
        missed.update(step.trouble.value for step in round_.plan.steps if step not in round_.done)
        ends.update(_ends(round_))
        print(f"{number}: {took_s[-1]:.1f} s; {_line(round_)}", flush=True)
        if found:
            broken.append(number)
            again = f"make chaos SEED={seed} ROUND={number} ROUNDS=1"
            print("\n\n".join([f"BROKEN, {again} repeats it", round_.story(), *found]), flush=True)
            if len(broken) == BROKEN_AT_MOST:
                break
            here.end_leftovers()
            here.bring_nodes_back()
        else:
            round_.clear_away()
            here.timeline.forget_ended()
    say(f"chaos, seed {seed}: {len(took_s)} rounds from {rounds.start} on, {len(broken)} of them broken {broken or ''}")
    say(f"  ends: {', '.join(f'{end} {count}' for end, count in sorted(ends.items()))}")
    for what in sorted(done | missed):
        say(f"  {done[what]:5} times (and missed {missed[what]:3}): {what}")
    say(f"  a round: {spread(took_s)}")
    assert not broken, f"rounds {broken} of --seed {seed} broke an invariant; each is told above"


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


def _ends(round_: Round) -> Iterator[str]:
    for life in round_.lives:
        yield life.task.phase if life.task.end else "gone without an end"


def _line(round_: Round) -> str:
    """What was done, and what became of the tasks."""
    faults = Counter(step.trouble.name for step in round_.done)
    ends = Counter(_ends(round_))
    told = (f"{what} {count}" if count > 1 else what for what, count in faults.items())
    return f"{', '.join(told) or 'nothing'} -> {', '.join(f'{end} {count}' for end, count in sorted(ends.items()))}"
