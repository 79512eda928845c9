"""`python -m tests.simulation.search`: all that may come of the moves of `narrow` with at most so many faults.

By faults first and then by moves, so that what goes wrong is told by its shortest story. From a state that was reached
in as few moves before, nothing is tried again (`fingerprint`). Coroutines can't be copied, so a story is played from
its beginning, and then on for as long as its first choice leads to something new. Where nothing is left to do but to
wait, or the depth is reached, the faults stop, and all has to end. Run by the Makefile with the venv's Python.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from multiprocessing import get_context

from tests.simulation.__main__ import quietly
from tests.simulation.fingerprint import fingerprint
from tests.simulation.history import History, Move, story
from tests.simulation.narrow import Choice, Narrow
from tests.simulation.simulation import Setting

_AT_A_TIME = 16
"""Stories that one process plays at once."""
_AHEAD = 64
"""So many times that are handed out before the first of them is looked at."""
_TOLD_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    faults: int = 1
    depth: int = 200
    in_every_order: bool = False
    """Writes and the steps of runs are late at no cost."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A state, after so many moves of its story."""

    state: bytes
    choices: tuple[Choice, ...]
    """None: an end."""


@dataclass(frozen=True, slots=True)
class Played:
    """Each state after the moves that were asked for, by the first choice that costs nothing."""

    path: tuple[Reached, ...]
    violation: str = ""
    """What was wrong after the last of them; where there is none, after what was asked for."""


@dataclass(slots=True)
class Found:
    states: int = 0
    steps: int = 0
    ends: int = 0
    depth: int = 0
    """The most moves from the beginning to a state, by its shortest way."""
    cut: int = 0
    """States that were not gone on from, for want of depth."""
    violation: History | None = None


@dataclass(frozen=True, slots=True)
class _Node:
    """A move, after those of another node."""

    before: _Node | None
    move: Move
    length: int

    def moves(self) -> list[Move]:
        moves, at = list[Move](), self
        while True:
            moves.append(at.move)
            if at.before is None:
                return moves[::-1]
            at = at.before


_known: dict[bytes, tuple[int, int]] = {}
"""Of this process: state -> (faults, moves) by which it was reached best."""


def play(moves: list[Move], used: int, bounds: Bounds) -> Played:
    """`used`: so many faults are among them."""
    simulation, path = Narrow(), list[Reached]()
    length = len(moves)
    try:
        for name, pick in moves:
            getattr(simulation, name)(pick)
        while True:
            now = Reached(fingerprint(simulation), tuple(simulation.choices(in_every_order=bounds.in_every_order)))
            path.append(now)
            if _known.get(now.state, (used, length + 1)) <= (used, length):
                break
            _known[now.state] = used, length
            if not now.choices or length >= bounds.depth:
                simulation.settle()
                break
            length += 1
            getattr(simulation, now.choices[0].name)(now.choices[0].pick)
    except AssertionError as error:
        return Played(tuple(path), str(error))
    except Exception as error:
        return Played(tuple(path), f"our own error: {error!r}")
    finally:
        simulation.close()
    return Played(tuple(path))


def _play_all(stories: list[list[Move]], used: int, bounds: Bounds) -> list[Played]:
    return [play(moves, used, bounds) for moves in stories]


class Search:
    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._best_way: dict[bytes, tuple[int, int]] = {}
        """State -> (faults, moves) by which it was reached best."""
        self._open: list[list[tuple[int, int, _Node]]] = [[] for _ in range(bounds.faults + 1)]
        """Faults -> steps that are to be tried, those after the fewest moves first."""
        self._numbers = iter(range(10**12))
        self._found = Found()
        self._best = bounds.depth + 1
        self._first_will_do = False

    def run(self, jobs: int = 1, *, first_will_do: bool = False) -> Found:
        """`first_will_do`: what is found first is not asked for a shorter story."""
        _known.clear()
        self._first_will_do = first_will_do
        if jobs == 1:
            return self._run(None)
        with ProcessPoolExecutor(jobs, get_context("fork"), _begin) as pool:
            return self._run(pool)

    def _run(self, pool: ProcessPoolExecutor | None) -> Found:
        self._take(None, play([], 0, self._bounds), 0)
        told = time.monotonic()
        for used in range(self._bounds.faults + 1):
            while self._open[used] and not (self._first_will_do and self._found.violation is not None):
                for node, played in self._all_played(self._next(used), used, pool):
                    self._take(node, played, used)
                    if self._first_will_do and self._found.violation is not None:
                        break
                    if time.monotonic() - told > _TOLD_EVERY_S:
                        told = time.monotonic()
                        print(f"{used} faults: {self._found.steps} steps, {len(self._best_way)} states", flush=True)
            if self._found.violation is not None:
                break
        self._found.states = len(self._best_way)
        self._found.depth = max(length for _, length in self._best_way.values())
        return self._found

    def _next(self, used: int) -> list[_Node]:
        steps, nodes = self._open[used], list[_Node]()
        while steps and len(nodes) < _AHEAD * _AT_A_TIME:
            length, _, node = heapq.heappop(steps)
            if length < self._best:
                nodes.append(node)
        return nodes

    def _all_played(
        self, nodes: list[_Node], used: int, pool: ProcessPoolExecutor | None
    ) -> Iterator[tuple[_Node, Played]]:
        if pool is None:
            yield from ((node, play(node.moves(), used, self._bounds)) for node in nodes)
            return
        rest = iter(nodes)
        blocks = list(iter(lambda: list(islice(rest, _AT_A_TIME)), []))
        stories = [[node.moves() for node in block] for block in blocks]
        all_played = pool.map(_play_all, stories, repeat(used), repeat(self._bounds))
        for block, played in zip(blocks, all_played, strict=True):
            yield from zip(block, played, strict=True)

    def _take(self, node: _Node | None, played: Played, used: int) -> None:
        """What is new on this path, and what may be tried from there."""
        found = self._found
        length = node.length if node is not None else 0
        found.steps += len(played.path) + bool(played.violation)
        for n, now in enumerate(played.path):
            is_last = n == len(played.path) - 1
            if self._best_way.get(now.state, (used, length + 1)) > (used, length):
                found.ends += not now.choices and now.state not in self._best_way
                self._best_way[now.state] = used, length
                if length < self._bounds.depth:
                    # The path itself is what comes of the first.
                    self._put_off(node, now.choices if is_last and not played.violation else now.choices[1:], used)
                else:
                    found.cut += bool(now.choices)
            if not is_last or (played.violation and now.choices):
                first = now.choices[0]
                length += 1
                node = _Node(node, (first.name, first.pick), length)
        if played.violation and length < self._best:
            self._best = length
            moves = tuple(node.moves()) if node is not None else ()
            found.violation = History(Setting(), moves, played.violation)

    def _put_off(self, node: _Node | None, choices: tuple[Choice, ...], used: int) -> None:
        length = node.length + 1 if node is not None else 1
        for choice in choices:
            if (faults := used + choice.faults) <= self._bounds.faults:
                step = _Node(node, (choice.name, choice.pick), length)
                heapq.heappush(self._open[faults], (length, next(self._numbers), step))


def _begin() -> None:
    """Of a process that does nothing else."""
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.simulation.search", description=__doc__.splitlines()[0])
    arguments.add_argument("--faults", type=int, default=1, help="at most so many in one story (1)")
    arguments.add_argument("--depth", type=int, default=200, help="at most so many moves (200)")
    arguments.add_argument("--every-order", action="store_true", help="writes and steps of runs are late at no cost")
    arguments.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="at once (number of cores)")
    chosen = arguments.parse_args(words)
    bounds = Bounds(chosen.faults, chosen.depth, chosen.every_order)
    began = time.monotonic()
    with quietly():
        found = Search(bounds).run(chosen.jobs)
        if found.violation is not None:
            print("\n".join(("", *story(found.violation, of=Narrow), "")))
    print(
        f"at most {bounds.faults} faults, {'every order' if bounds.in_every_order else 'one order'}: "
        f"{found.states} states, "
        f"{found.steps} steps between them, {found.ends} ends, at most {found.depth} moves deep "
        f"({found.cut} cut off at {bounds.depth}), {'a violation' if found.violation else '0 violations'}; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return 1 if found.violation else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
