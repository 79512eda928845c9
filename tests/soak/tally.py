"""What a long trial has done so far: a line for each round, and a table at its end. Called by `test_chaos`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.soak.random_tasks import spread
from tests.soak.troubles import Round


@dataclass
class Tally:
    """What has been done so far, and what came of it."""

    seed: int
    first: int
    done: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    waited_s: list[float] = field(default_factory=list)
    """Until one led, one stood by, and agents were there."""
    took_s: list[float] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def note(self, round_: Round, waited_s: float, took_s: float, *, is_broken: bool) -> None:
        """And says it in a line."""
        faults = Counter(step.trouble.name for step in round_.done)
        ends = Counter(life.task.phase if life.task.end else "gone without an end" for life in round_.lives)
        self.done.update(step.trouble.value for step in round_.done)
        self.missed += Counter(step.trouble.value for step in round_.plan.steps) - Counter(
            step.trouble.value for step in round_.done
        )
        self.ends.update(ends)
        self.waited_s.append(waited_s)
        self.took_s.append(took_s)
        if is_broken:
            self.broken.append(round_.plan.number)
        times = f"{round_.plan.number}: {took_s:.1f} s after {waited_s:.1f} s"
        print(f"{times}; {_counted(faults) or 'nothing'} -> {_counted(ends)}", flush=True)

    def lines(self) -> Iterator[str]:
        verdict = f"{len(self.broken)} of them broken {self.broken or ''}"
        yield f"chaos, seed {self.seed}: {len(self.took_s)} rounds from {self.first} on, {verdict}"
        yield f"  ends: {_counted(self.ends)}"
        for what in sorted(self.done | self.missed):
            yield f"  {self.done[what]:5} times (and {self.missed[what]:3} with nothing to do it to): {what}"
        yield f"  before a round: {spread(self.waited_s)}"
        yield f"  a round: {spread(self.took_s)}"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" if count > 1 else what for what, count in sorted(counter.items()))
