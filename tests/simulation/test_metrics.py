"""Whatever goes wrong, what Prometheus adds up over all operators of a history counts no end and no workspace twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from terrahalt_operator.core.model import TERMINAL
from terrahalt_operator.errors import Unreachable
from tests.simulation import history
from tests.simulation.history import of_seed
from tests.simulation.operators import Life
from tests.simulation.simulation import Simulation

SEEDS = range(60)


@pytest.fixture
def played() -> Iterator[list[Simulation]]:
    """Each simulation, as its history left it."""
    simulations: list[Simulation] = []

    def keep(*given: object, **also: object) -> Simulation:
        simulations.append(Simulation(*given, **also))  # type: ignore[arg-type]
        return simulations[-1]

    with mock.patch.object(history, "Simulation", keep):
        yield simulations


def counted_twice(simulations: list[Simulation]) -> list[str]:
    return [uid for s in simulations for what in (s.counts.ends, s.counts.freed) for uid, n in what.items() if n > 1]


def ends(simulations: list[Simulation]) -> tuple[set[Any], set[Any]]:
    """Tasks that have ended, and those whose end was counted."""
    ended = {(n, uid) for n, s in enumerate(simulations) for uid, t in s.judge.tasks.items() if t.phase in TERMINAL}
    return ended, {(n, uid) for n, s in enumerate(simulations) for uid, times in s.counts.ends.items() if times}


def test_no_end_is_counted_twice_and_hardly_one_is_missed(played: list[Simulation]) -> None:
    assert [of_seed(seed).violation for seed in SEEDS] == [""] * len(SEEDS)
    assert counted_twice(played) == []
    ended, counted = ends(played)
    assert counted <= ended
    assert len(ended) > 100
    assert len(counted) > 0.95 * len(ended)


def test_an_end_whose_answer_is_lost_is_counted_once_it_is_seen(played: list[Simulation]) -> None:
    """Every third answer to a write of a task is."""
    writes, go_on = 0, Life.go_on
    waiting: set[tuple[Life, Any]] = set()

    def goes_on(life: Life, key: Any, error: Exception | None = None) -> None:
        nonlocal writes
        asked = life.asks.get(key)
        if (life, key) in waiting:
            waiting.remove((life, key))
            error = Unreachable("the answer is lost")
        elif asked is not None and asked.verb == "patch" and asked.of.startswith("terraformtasks "):
            writes += 1
            if writes % 3 == 0:
                waiting.add((life, key))
        go_on(life, key, error)

    with mock.patch.object(Life, "go_on", goes_on):
        assert [of_seed(seed).violation for seed in SEEDS] == [""] * len(SEEDS)
    assert counted_twice(played) == []
    ended, counted = ends(played)
    assert counted <= ended
    # What is never looked at again, or by another operator, is missed.
    assert len(counted) > 0.85 * len(ended)
