"""`python -m tests.simulation`: histories by the thousand, each from a seed; a failing one is shrunk and told.

Run by the Makefile with the venv's Python. Without a first seed they are fresh ones, and are printed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

from tests.simulation import kept
from tests.simulation.history import History, of_seed, shrunk, story

_BLOCK = 250
"""Seeds that one process takes at a time."""
_FRESH = 10**12
_TOLD_EVERY = 10_000


@dataclass(frozen=True, slots=True)
class Played:
    took_s: list[float]
    moves: Counter[str]
    """Name -> how often it was made."""
    failed: list[tuple[int, History]]


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=2_000, help="how many histories (2000)")
    arguments.add_argument("--seed", type=int, help="the first of them (a random one)")
    arguments.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="at once (number of cores)")
    arguments.add_argument("--moves", action="store_true", help="say how often each was made")
    arguments.add_argument("--failures", type=int, default=1, help="how many are told before it stops (1)")
    chosen = arguments.parse_args(words)
    first: int = random.SystemRandom().randrange(_FRESH) if chosen.seed is None else chosen.seed
    blocks = [range(n, min(n + _BLOCK, first + chosen.seeds)) for n in range(first, first + chosen.seeds, _BLOCK)]
    print(f"{chosen.seeds} histories from seed {first}: make simulate SEEDS={chosen.seeds} SEED={first}", flush=True)
    began, took_s, moves, failed = time.monotonic(), list[float](), Counter[str](), list[tuple[int, History]]()
    with quietly():
        for played in _played(blocks, chosen.jobs):
            took_s += played.took_s
            moves += played.moves
            for seed, history in played.failed[: chosen.failures - len(failed)]:
                _tell(seed, history)
            failed += played.failed
            if len(took_s) % _TOLD_EVERY == 0:
                print(f"{len(took_s)} histories, to seed {first + len(took_s) - 1}", flush=True)
            if len(failed) >= chosen.failures:
                break
    if chosen.moves:
        print("\n".join(f"{count:>12}  {name}" for name, count in moves.most_common()))
    cpu_s = sum(took_s)
    print(
        f"seeds {first} to {first + len(took_s) - 1}: {len(took_s)} histories, {moves.total()} moves, {len(failed)} "
        f"violations; median {statistics.median(took_s) * 1000:.1f} ms of CPU a history, {len(took_s) / cpu_s:.0f} a "
        f"second and core, {cpu_s:.0f} s of CPU, {time.monotonic() - began:.0f} s in all"
    )
    return 1 if failed else 0


def _played(blocks: list[range], jobs: int) -> Iterator[Played]:
    """In their order; what is not wanted any more is not begun."""
    if jobs == 1:
        yield from map(play, blocks)
        return
    # Forked, as everywhere before Python 3.14: another kind finds no `_begin` in a module that is run as `__main__`.
    with ProcessPoolExecutor(jobs, get_context("fork"), _begin) as pool:
        try:
            yield from pool.map(play, blocks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Of a process that does nothing else."""
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@contextmanager
def quietly() -> Iterator[None]:
    """Without log lines: half of a history's time would go into them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def play(seeds: Iterable[int]) -> Played:
    took_s, moves, failed = list[float](), Counter[str](), list[tuple[int, History]]()
    for seed in seeds:
        began = time.process_time()
        history = of_seed(seed)
        took_s.append(time.process_time() - began)
        moves.update(name for name, _ in history.moves)
        if history.violation:
            failed.append((seed, history))
    return Played(took_s, moves, failed)


def _tell(seed: int, history: History) -> None:
    short = shrunk(history)
    print(f"\nseed {seed}: {history.violation}\n")
    for line in story(short):
        print(f"  {line}")
    print(f"\nTo see it again: make simulate SEEDS=1 SEED={seed}\nTo keep it, in tests/simulation/kept.txt:\n")
    print(kept.as_text("what this shows", short), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
