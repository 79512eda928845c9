"""Random runs of the agent with random troubles: every end is true, whatever happened.

`--agent-minutes` says how long (without it: 20 runs), `--seed` repeats the same rounds and `--round` one of them.
What may happen is in `plan`, how it is done in `runs`, what has to be true in `judge`.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.agent_terraform.certificates import Authority
from tests.agent_terraform.soak import judge
from tests.agent_terraform.soak.places import Servers
from tests.agent_terraform.soak.plan import Plan, plan
from tests.agent_terraform.soak.runs import Ran, Round
from tests.backends.bucket import an_s3_server
from tests.backends.postgres import a_postgres

pytestmark = pytest.mark.terraform
AT_ONCE = 4
"""Rounds; much of their time they wait, for a grace or for a backend."""
RUNS = 20
"""Without `--agent-minutes`."""
MANY = 10
"""Rounds with a violation, after which no other is begun."""


@dataclass
class Soak:
    seed: int
    folder: Path
    authority: Authority
    env: dict[str, str]
    servers: Servers
    stories: list[str] = field(default_factory=list)
    runs: list[Ran] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, drawn: Plan) -> None:
        round_ = Round(drawn, self.folder / str(drawn.number), self.authority, self.env, self.servers)
        known, may_fail = frozenset[str](), False
        async with aclosing(round_.run()) as runs:
            async for ran in runs:
                may_fail = may_fail or ran.planned.shape.may_fail
                problems = judge.violations(ran, known, may_fail=may_fail)
                known = judge.still_known(ran)
                self._note(drawn, ran)
                if problems:
                    again = f"--seed {self.seed} --round {drawn.number} repeats this round"
                    self.stories.append(f"{again}\n{round_.story(problems)}")
                    print(self.stories[-1], flush=True)
                    return
                if judge.needs_a_person(ran):
                    break
        await asyncio.to_thread(shutil.rmtree, round_.folder)

    def _note(self, drawn: Plan, ran: Ran) -> None:
        self.runs.append(ran)
        result = ran.report.result if ran.report else None
        end = f"{result.outcome.value} ({result.reason})" if result else "killed, with all of its pod"
        what = [f"end: {end}", f"state in {drawn.place}", ran.planned.action.value]
        what += [f"made: {happening.trouble.value}" for happening in ran.done]
        if result is not None:
            what += [f"state: {result.state.value}", f"lock: {result.lock.condition.value}"]
        if ran.report is not None and ran.report.cancel is not None:
            what.append(f"rung: {ran.report.cancel.rung.value}")
        self.counts.update(what)
        said = ", ".join(happening.trouble.value for happening in ran.done) or "nothing"
        which = f"seed {self.seed} round {drawn.number} run {drawn.runs.index(ran.planned)}"
        print(f"{which}: {drawn.place}, {ran.planned.action.value}, {said}: {end} in {ran.took_s:.1f} s", flush=True)


async def test_random_runs_end_as_the_cloud_and_the_backend_have_seen_it(
    tmp_path: Path,
    authority: Authority,
    providers: dict[str, str],
    seed: int,
    request: pytest.FixtureRequest,
    say: Callable[[str], None],
) -> None:
    minutes: float | None = request.config.getoption("--agent-minutes")
    only: int | None = request.config.getoption("--round")
    numbers = count()
    with an_s3_server(tmp_path) as s3, a_postgres() as postgres:
        soak = Soak(seed, tmp_path, authority, providers, Servers(s3, postgres))
        began, drawn_runs = time.monotonic(), 0

        def is_enough() -> bool:
            is_over = drawn_runs >= RUNS if minutes is None else time.monotonic() - began > minutes * 60
            return is_over or len(soak.stories) >= MANY

        async def work() -> None:
            nonlocal drawn_runs
            while not is_enough():
                drawn = plan(seed, next(numbers))
                drawn_runs += len(drawn.runs)
                await soak.run(drawn)

        if only is not None:
            await soak.run(plan(seed, only))
        else:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(work())
        took_s = time.monotonic() - began
    say(f"random runs of the agent: {len(soak.runs)} in {took_s:.0f} s, {len(soak.stories)} rounds with a violation")
    for what, times in sorted(soak.counts.items()):
        say(f"  {what}: {times}")
    if soak.stories:
        pytest.fail("\n\n".join(soak.stories), pytrace=False)
