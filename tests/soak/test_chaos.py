"""Chaos on two nodes: every fault that there is, several at once, round after round, and every invariant holds.

`--rounds` says how many (`make chaos`), `--round` the first of them, `--seed` repeats the same ones. What may happen is
in `chaos_plan`, how it is done in `troubles` and `faults`, what has to be true afterwards in `judge` and `remains`.
It goes on after a round that broke something, so that one run tells whether it is one fault or many.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster import ClusterError
from tests.e2e.installation import SOAK, Installation
from tests.soak import judge, remains
from tests.soak.chaos_plan import plan
from tests.soak.tally import Tally
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


def test_chaos_breaks_no_invariant(battlefield: Installation, rounds: range, seed: int) -> None:
    tally = Tally(seed, rounds.start)
    print(f"\nchaos, seed {seed}, rounds {rounds.start} to {rounds.stop - 1}", flush=True)
    try:
        for number in rounds:
            waited = time.monotonic()
            _stand_ready(battlefield)
            began = time.monotonic()
            cluster = battlefield.cluster
            pools = battlefield.soak_pools
            round_ = Round(
                battlefield, plan(seed, number, pools=pools, nodes=cluster.nodes, may_freeze=cluster.workers)
            )
            found = _broken_by(round_)
            tally.note(round_, began - waited, time.monotonic() - began, is_broken=bool(found))
            if found:
                again = f"BROKEN, make chaos SEED={seed} ROUND={number} repeats it"
                print("\n\n".join([again, round_.story(), *found]), flush=True)
                if len(tally.broken) == BROKEN_AT_MOST:
                    break
                battlefield.end_leftovers()
                battlefield.bring_nodes_back()
            else:
                round_.clear_away()
                battlefield.timeline.forget_ended()
    finally:
        # Also of a trial that was stopped: the next one goes on.
        print(*tally.lines(), sep="\n", flush=True)
    assert not tally.broken, f"rounds {tally.broken} of --seed {seed} broke an invariant; each is told above"


def _stand_ready(here: Installation) -> None:
    """One leads, one stands by, agents wait: what the round before has cost does not count in this one."""
    here.renew_operators()
    here.wait_for_standby()
    for pool in here.soak_pools:
        here.wait_for_idle(SOAK, IDLE_OF_OTHERS, pool=pool)


def _broken_by(round_: Round) -> list[str]:
    try:
        round_.run()
    except (AssertionError, ClusterError, subprocess.TimeoutExpired) as problem:
        return [str(problem)]
    return judge.violations(round_) + remains.violations(round_)
