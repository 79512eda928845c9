"""Rounds of random tasks with random troubles, on two nodes, until the time is over: every invariant holds.

`--minutes` says how long (`make test`: half a one, `make soak`: 10), `--seed` repeats the same rounds. What may
happen is in `plan`, how it is done in `troubles`, what has to be true afterwards in `judge`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.installation import SOAK, Installation
from tests.soak.judge import violations
from tests.soak.plan import plan
from tests.soak.random_tasks import spread
from tests.soak.troubles import Round

pytestmark = [pytest.mark.cluster, pytest.mark.alone]


def test_random_troubles_break_no_invariant(
    soak: Installation, seed: int, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    minutes: float = request.config.getoption("--minutes") or pytest.skip("--minutes 0")
    only: int | None = request.config.getoption("--round")
    cluster = soak.cluster
    pools = soak.soak_pools
    for pool in pools[1:]:
        soak.scale_pool(SOAK, 2, pool)
    began, number = time.monotonic(), only or 0
    took_s: list[float] = []
    made: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    while not took_s or (only is None and time.monotonic() - began < minutes * 60):
        round_began = time.monotonic()
        may_freeze = cluster.workers if cluster.is_ours else ()
        round_ = Round(soak, plan(seed, number, pools=pools, nodes=cluster.nodes, may_freeze=may_freeze))
        again = f"--seed {seed} --round {number} repeats this round"
        try:
            round_.run()
        except AssertionError as problem:
            problem.add_note(f"{again}\n{round_.story()}")
            raise
        found = violations(round_)
        assert not found, "\n\n".join([again, round_.story(), *found])
        made.update(step.trouble.value for step in round_.done)
        ends.update(life.task.phase if life.task.end else "gone from the queue" for life in round_.lives)
        took_s.append(time.monotonic() - round_began)
        number += 1
    say(f"random troubles on {len(cluster.nodes)} nodes, {len(pools)} engines: {len(took_s)} rounds, 0 violations")
    say(f"  ends: {', '.join(f'{end} {count}' for end, count in sorted(ends.items()))}")
    say(f"  made: {', '.join(f'{what} {count}' for what, count in sorted(made.items()))}")
    say(f"  a round: {spread(took_s)}")
