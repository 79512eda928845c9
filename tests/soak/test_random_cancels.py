"""Cancels at random moments: no process outlives its status, none is left after two seconds, the next one starts.

The two seconds are for a cancel in mid-apply: what does the work has begun, and stops when it is asked.
Before that terraform may still be starting a provider, and a signal would be lost; such ends are
measured too. The task of the next trial always waits on the workspace already, and is to begin within a second;
a single one may meet a slow disk. `--cancels` says how many trials (`make test`: 20, `make soak`: 200), `--seed`
repeats them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from terrahalt_agent.core.ladder import Times
from tests.e2e import evidence
from tests.e2e.installation import SOAK, Installation
from tests.e2e.tasks import RunningTask
from tests.soak.random_tasks import Trial, a_random_task, spread

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

LANES = 1
GONE_WITHIN_S = 2.0
NEXT_WITHIN_S = 1.0
"""At the median."""
EACH_WITHIN_S = 5.0
"""Without what wakes it at the end of the one before, it would be found by a list, up to a minute later."""
IN_MID_APPLY_EVERY = 4
MID_APPLY, EARLIER = "in mid-apply", "earlier"
BY_ITSELF, KILLED = "that ended by itself", "that was killed"
LATE_LOCK_S = {BY_ITSELF: 0.0, KILLED: Times().late_lock_s}
"""Who kills terraform waits until no lock can be granted to it any more."""


def test_cancels_at_random_moments_leave_nothing_alive_and_tell_the_truth(
    soak: Installation, seed: int, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    count: int = request.config.getoption("--cancels") or pytest.skip("--cancels 0")
    shares = [count // LANES + (lane < count % LANES) for lane in range(LANES)]
    problems: list[str] = []
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [
            pool.submit(_run_lane, soak, random.Random(f"{seed}/{lane}"), lane, share, problems)
            for lane, share in enumerate(shares)
        ]
        trials = [pair for lane in lanes for pair in lane.result()]

    gone_s: dict[str, list[float]] = {MID_APPLY: [], EARLIER: []}
    handed_s: dict[str, list[float]] = {BY_ITSELF: [], KILLED: []}
    steps: Counter[str] = Counter()
    for trial, following in trials:
        try:
            steps[_judge(trial, gone_s)] += 1
            _judge_handover(trial.task, following.task, handed_s)
        except AssertionError as problem:
            problems.append(f"trial {trial.number} ({trial.kind}): {problem}")
    ends = [trial.task.end for trial, _ in trials]
    blind_s = [soak.timeline.blind_s(end.at) for end in ends if end]
    say(f"random cancels: {count}, {len(problems)} violations; cancelled in {dict(sorted(steps.items()))}")
    for moment, values in gone_s.items():
        say(f"  PATCH {moment} to the last process gone: {spread(values)}")
    for how, values in handed_s.items():
        say(f"  last process of one {how} to the next task's terraform, an agent waiting: {spread(values)}")
    say(f"  after the status said so, nobody looked at the node for at most: {spread(blind_s)}")
    assert not problems, f"--seed {seed}\n" + "\n\n".join(problems)
    assert gone_s[MID_APPLY], "no cancel came in mid-apply"
    waited_s = [took_s - LATE_LOCK_S[how] for how, values in handed_s.items() for took_s in values]
    assert not waited_s or statistics.median(waited_s) < NEXT_WITHIN_S, handed_s


def _run_lane(
    installation: Installation, chance: random.Random, lane: int, count: int, problems: list[str]
) -> list[tuple[Trial, Trial]]:
    """Each trial that ended, with the one that waited for its end."""
    done: list[tuple[Trial, Trial]] = []
    trial = a_random_task(installation, chance, lane * 1000)
    for number in range(lane * 1000 + 1, lane * 1000 + count + 1):
        following = a_random_task(installation, chance, number, trial.task.workspace)
        try:
            _cancel_at_some_moment(trial.task, chance, in_mid_apply=number % IN_MID_APPLY_EVERY == 0)
            done.append((trial, following))
        except AssertionError as problem:
            # It would hold up all that follows on its workspace.
            problems.append(f"trial {trial.number} ({trial.kind}): {problem}")
            following = a_random_task(installation, chance, number)
        trial = following
    trial.task.cancel()
    trial.task.until_ended()
    return done


def _cancel_at_some_moment(task: RunningTask, chance: random.Random, *, in_mid_apply: bool) -> None:
    task.until(lambda: bool(task.run_id), 120, "an agent")
    if in_mid_apply:
        task.until(lambda: _was_in_mid_apply(task, time.time()) or task.end is not None, 120, "its work")
    # The first second of a run has init, plan and the beginning of apply in it.
    time.sleep(chance.choice((chance.uniform(0, 0.8), chance.uniform(0.5, 1.5), chance.uniform(0.5, 5))))
    task.cancel()
    task.until_ended()


def _judge(trial: Trial, gone_s: dict[str, list[float]]) -> str:
    """The step in which the cancel met it."""
    task = trial.task
    phase = task.until_ended()
    evidence.assert_over(task)
    asked, ended = task.cancel_seen, task.end
    assert asked is not None, task.story()
    assert ended is not None, task.story()
    met = [p for p in task.processes if p.is_terraform() and p.first_seen <= asked.at <= p.last_seen]
    step = met[0].command[1] if met else "between"
    if phase == "Succeeded":
        assert task.status["result"]["exitCode"] == 0, task.story()
        evidence.assert_steps(task, "init", "plan", "apply")
        if asked.version < ended.version:
            assert task.condition("CancelRequested")["reason"] == "TooLate", task.story()
        return "time to succeed"
    assert phase == "Cancelled", task.story()
    assert task.status["result"]["reason"] == "CancelledByUser", task.story()
    assert task.status["result"]["lock"] == "Released", task.story()
    if task.processes and evidence.last_gone(task) > asked.at:
        took_s = evidence.last_gone(task) - asked.at
        moment = MID_APPLY if _was_in_mid_apply(task, asked.at) else EARLIER
        gone_s[moment].append(took_s)
        if moment is MID_APPLY:
            took_s -= task.installation.timeline.stalled_s(asked.at, evidence.last_gone(task))
            assert took_s < GONE_WITHIN_S, f"{took_s:.3f} s from the PATCH to the last process\n{task.story()}"
    return step


def _was_in_mid_apply(task: RunningTask, asked_at: float) -> bool:
    """The provider or the command that did the work, the last to begin, was there before the cancel."""
    applies = [p for p in task.processes if p.is_terraform("apply")]
    if not applies:
        return False
    began = min(p.first_seen for p in applies)
    workers = [p.first_seen for p in task.processes if p.first_seen > began and not p.is_terraform()]
    return bool(workers) and max(workers) < asked_at


def _judge_handover(before: RunningTask, after: RunningTask, handed_s: dict[str, list[float]]) -> None:
    """The next one never starts before, and soon after it may where an agent waited."""
    if not after.processes or not before.processes:
        return
    assert evidence.claims_of(after)[0].version > next(s for s in evidence.claims_of(before) if s.is_deleted).version
    assert min(p.first_seen for p in after.processes) > evidence.last_alive(before), before.story() + after.story()
    ended = before.end
    assert ended is not None
    pools = before.installation.timeline.history("agentpools", SOAK, "default")
    idle = [s.status.get("idle", 0) for s in pools if s.at < ended.at]
    # The pool is told once a second; meanwhile each lane may have taken one.
    if idle and idle[-1] >= LANES and any(p.is_terraform() for p in after.processes):
        # Where the one before ended by itself, the next one may have come later.
        gone, begun = max(evidence.last_gone(before), after.history[0].at), evidence.first_start(after)
        took_s = begun - gone
        how = KILLED if before.status.get("cancel", {}).get("rung") == "Kill" else BY_ITSELF
        handed_s[how].append(took_s)
        took_s -= before.installation.timeline.stalled_s(gone, begun) + LATE_LOCK_S[how]
        assert took_s < EACH_WITHIN_S, f"the next task began {took_s:.3f} s later\n{before.story()}\n{after.story()}"
