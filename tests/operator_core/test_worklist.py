"""Keys are worked on one at a time, again when woken meanwhile, later after an error: in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import uvloop

from terrahalt_operator.errors import ClusterError, Conflict, Unreachable
from terrahalt_operator.worklist import (
    BACKOFF_S,
    GOES_ON_S,
    MAKES_WAY_AT_MOST_S,
    MAKES_WAY_S,
    MANY,
    MANY_WITHIN_S,
    Key,
    Worklist,
)
from tests.operator_core.virtual_time import now, virtually

A, B = ("task", "a"), ("task", "b")


class Log:
    """What was worked on and when; `work` may be told to wait or to fail."""

    def __init__(self, *, takes_s: float = 0.0, errors: list[Exception] | None = None) -> None:
        self.begun: list[tuple[float, Key]] = []
        self.active: list[Key] = []
        self.most_active = 0
        self._takes_s, self._errors = takes_s, errors or []

    async def __call__(self, key: Key) -> None:
        assert key not in self.active, "two workers on one key"
        self.begun.append((round(now(), 6), key))
        self.active.append(key)
        self.most_active = max(self.most_active, len(self.active))
        try:
            await asyncio.sleep(self._takes_s)
            if self._errors:
                raise self._errors.pop(0)
        finally:
            self.active.remove(key)


async def play(work: Callable[[Key], Awaitable[None]], script: Callable[[Worklist], Awaitable[None]]) -> None:
    """Three workers, while the script runs."""
    worklist = Worklist()
    workers = [asyncio.ensure_future(worklist.run_worker(work)) for _ in range(3)]
    await script(worklist)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


def run(log: Log, script: Callable[[Worklist], Awaitable[None]]) -> list[tuple[float, Key]]:
    virtually(play(log, script))
    return log.begun


def test_a_key_woken_often_is_worked_on_once() -> None:
    async def script(worklist: Worklist) -> None:
        for _ in range(5):
            worklist.wake(A)
        await asyncio.sleep(1)

    assert run(Log(), script) == [(0.0, A)]


def test_two_keys_are_worked_on_side_by_side() -> None:
    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        worklist.wake(B)
        await asyncio.sleep(5)

    log = Log(takes_s=1)
    assert run(log, script) == [(0.0, A), (0.0, B)]
    assert log.most_active == 2


def test_a_key_woken_while_it_is_worked_on_is_worked_on_once_more_afterwards() -> None:
    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        await asyncio.sleep(0.5)
        worklist.wake(A)
        worklist.wake(A)
        await asyncio.sleep(5)

    assert run(Log(takes_s=1), script) == [(0.0, A), (1.0, A)]


def test_an_error_brings_the_key_back_after_a_growing_wait_and_stops_no_other() -> None:
    errors: list[Exception] = [Conflict("x"), Unreachable("x"), ValueError("a bug"), ClusterError("x")]

    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        await asyncio.sleep(10)
        worklist.wake(B)
        await asyncio.sleep(10)

    times = [at_s for at_s, key in run(Log(errors=errors), script) if key == A]
    waits = [round(later - earlier, 6) for earlier, later in pairwise(times)]
    assert waits == list(BACKOFF_S[:4])


def test_the_wait_has_a_bound_and_begins_anew_after_a_success() -> None:
    errors: list[Exception] = [Conflict("x") for _ in range(10)]

    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        await asyncio.sleep(100)
        errors.append(Conflict("x"))
        worklist.wake(A)
        await asyncio.sleep(100)

    log = Log()
    log._errors = errors
    times = [at_s for at_s, _ in run(log, script)]
    waits = [round(later - earlier, 6) for earlier, later in pairwise(times)]
    assert waits[:10] == [*BACKOFF_S, *[BACKOFF_S[-1]] * (10 - len(BACKOFF_S))]
    assert waits[-1] == BACKOFF_S[0]


def test_what_was_woken_during_a_failure_does_not_wait_for_the_back_off() -> None:
    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        await asyncio.sleep(0.5)
        worklist.wake(A)
        await asyncio.sleep(0.52)

    assert run(Log(takes_s=1, errors=[Conflict("x")]), script) == [(0.0, A), (1.0, A)]


@pytest.mark.parametrize("delays", [[3.0, 1.0, 2.0], [1.0, 3.0], [2.0, 1.0]])
def test_the_earliest_of_several_timers_counts_and_the_others_are_dropped(delays: list[float]) -> None:
    async def script(worklist: Worklist) -> None:
        for delay_s in delays:
            worklist.wake_after(A, delay_s)
        await asyncio.sleep(10)

    assert run(Log(), script) == [(1.0, A)]


def test_a_timer_that_is_due_is_not_put_off_by_a_later_one() -> None:
    """Its callback and the one that sets the later timer may be due in the same turn of the loop."""

    async def script(worklist: Worklist) -> None:
        asyncio.get_running_loop().call_at(1.0, worklist.wake_after, A, 60.0)
        worklist.wake_after(A, 1.0)
        await asyncio.sleep(10)

    assert run(Log(), script) == [(1.0, A)]


def test_a_timer_that_is_due_at_once_is_one_like_any_other_in_the_loop_that_operators_have() -> None:
    async def script() -> list[Key]:
        worklist, worked = Worklist(), list[Key]()

        async def work(key: Key) -> None:
            worked.append(key)
            worklist.close()

        for delay_s in (0.0002, 0.0, 60.0):
            worklist.wake_after(A, delay_s)
        async with asyncio.timeout(10):
            await worklist.run_worker(work)
        return worked

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(script()) == [A]


def test_a_timer_can_be_set_again_after_it_rang() -> None:
    async def script(worklist: Worklist) -> None:
        worklist.wake_after(A, 1.0)
        await asyncio.sleep(2)
        worklist.wake_after(A, 1.0)
        await asyncio.sleep(2)

    assert run(Log(), script) == [(1.0, A), (3.0, A)]


def test_a_worker_that_is_stopped_leaves_its_key_to_the_next() -> None:
    async def script(worklist: Worklist) -> None:
        worklist.wake(A)
        await asyncio.sleep(0.5)
        worklist.wake(A)

    async def main() -> None:
        log = Log(takes_s=1)
        worklist = Worklist()
        worker = asyncio.ensure_future(worklist.run_worker(log))
        await script(worklist)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        following = asyncio.ensure_future(worklist.run_worker(log))
        await asyncio.sleep(3)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert log.begun == [(0.0, A), (0.5, A)]

    virtually(main())


def test_closing_lets_what_is_being_worked_on_end_and_begins_nothing_more() -> None:
    log = Log(takes_s=1)

    async def script() -> None:
        worklist = Worklist()
        workers = [asyncio.ensure_future(worklist.run_worker(log)) for _ in range(3)]
        worklist.wake(A)
        await asyncio.sleep(0.5)
        worklist.wake(B)
        worklist.wake(A)
        worklist.wake(("task", "c"))
        worklist.wake(("task", "d"))
        await asyncio.sleep(0.1)
        worklist.close()
        await asyncio.gather(*workers)
        assert now() == 1.5
        worklist.wake(A)

    virtually(script())
    assert [key for _, key in log.begun] == [A, B, ("task", "c")]


def test_workers_that_have_nothing_to_do_end_when_it_is_closed() -> None:
    async def script() -> None:
        worklist, log = Worklist(), Log()
        workers = [asyncio.ensure_future(worklist.run_worker(log)) for _ in range(3)]
        await asyncio.sleep(1)
        worklist.close()
        await asyncio.gather(*workers)
        assert log.begun == []

    virtually(script())


def test_looks_that_find_nothing_to_do_leave_the_loop_to_others_in_between() -> None:
    """Whoever begins to lead looks at ten thousand tasks, and has its Lease to renew meanwhile."""
    done: list[Key] = []

    async def work(key: Key) -> None:
        done.append(key)

    async def script(worklist: Worklist) -> None:
        for number in range(100):
            worklist.wake(("task", str(number)))
        turns = 0
        while len(done) < 100:
            await asyncio.sleep(0)
            turns += 1
            assert len(done) <= turns, "one look a turn, whatever workers there are"

    virtually(play(work, script))
    assert len(done) == 100


async def come(worklist: Worklist, urgent: int, every_s: float) -> None:
    for _ in range(urgent):
        worklist.make_way()
        await asyncio.sleep(every_s)


def test_nothing_is_begun_while_much_that_is_urgent_comes_and_all_of_it_once_that_is_over() -> None:
    async def script(worklist: Worklist) -> None:
        coming = asyncio.ensure_future(come(worklist, 100, 0.02))
        await asyncio.sleep(1)
        for _ in range(3):  # again and again, as each report of a run does
            worklist.wake(A)
        worklist.wake(B)
        await coming
        await asyncio.sleep(1)

    (first, a), (second, b) = run(Log(), script)
    assert {a, b} == {A, B}
    assert 99 * 0.02 + MAKES_WAY_S - 0.001 <= first <= second < 100 * 0.02 + MAKES_WAY_S


def test_a_few_that_are_urgent_hold_up_nothing() -> None:
    async def script(worklist: Worklist) -> None:
        await come(worklist, MANY - 1, 0.0)
        worklist.wake(A)
        await asyncio.sleep(MANY_WITHIN_S + 0.1)
        await come(worklist, 20, 1.1 * MANY_WITHIN_S / (MANY - 1))
        worklist.wake(B)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    log = Log()
    run(log, script)
    assert [key for _, key in log.begun] == [A, B]
    assert log.begun[0][0] == 0.0


def test_what_is_urgent_without_end_holds_up_all_for_some_seconds_and_then_nothing_for_one() -> None:
    async def script(worklist: Worklist) -> None:
        await come(worklist, MANY, 0.01)
        for number in range(10):  # more than there are workers
            worklist.wake(("task", str(number)))
        coming = asyncio.ensure_future(come(worklist, 1_000, 0.02))
        await asyncio.sleep(MAKES_WAY_AT_MOST_S + 0.5)
        worklist.wake(A)
        await asyncio.sleep(1.0)
        worklist.wake(B)
        await coming
        await asyncio.sleep(1)

    *first, (a_at, a), (b_at, b) = run(Log(), script)
    assert len(first) == 10
    assert all(MAKES_WAY_AT_MOST_S <= at < MAKES_WAY_AT_MOST_S + 0.1 for at, _ in first)
    assert (a, b) == (A, B)
    assert MAKES_WAY_AT_MOST_S + 0.5 <= a_at < MAKES_WAY_AT_MOST_S + GOES_ON_S
    assert b_at >= 2 * MAKES_WAY_AT_MOST_S + GOES_ON_S


def test_what_is_urgent_itself_is_looked_at_by_all_workers_in_each_turn() -> None:
    async def main() -> None:
        worklist, done = Worklist(is_urgent=True), list[Key]()

        async def work(key: Key) -> None:
            done.append(key)

        workers = [asyncio.ensure_future(worklist.run_worker(work)) for _ in range(4)]
        for number in range(100):
            worklist.wake(("cancel", str(number)))
            worklist.make_way()
        turns = 0
        while len(done) < 100:
            await asyncio.sleep(0)
            turns += 1
        assert 25 <= turns <= 30
        worklist.close()
        await asyncio.gather(*workers)

    virtually(main())


def test_who_makes_way_ends_at_once_when_it_is_closed() -> None:
    async def main() -> None:
        worklist = Worklist()
        worker = asyncio.ensure_future(worklist.run_worker(Log()))
        coming = asyncio.ensure_future(come(worklist, 1_000, 0.01))
        await asyncio.sleep(1)
        worklist.wake(A)
        await asyncio.sleep(1)
        closed = now()
        worklist.close()
        await worker
        assert now() == closed
        coming.cancel()

    virtually(main())
