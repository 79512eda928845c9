"""Histories: one from each seed, the same again from its moves, and a short one from a long one that fails.

A seed chooses which faults there are and how often, because a history in which everything goes wrong at once never
gets far. Called by `__main__` and the tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from tests.simulation.judge import Violation
from tests.simulation.simulation import MANUAL, Setting, Simulation

Move = tuple[str, int]
Model = Callable[[Setting, Callable[[str], None] | None], Simulation]

_ALWAYS = {
    "a_worker_goes_on": 12,
    "a_worker_begins": 7,
    "a_worker_looks_from_end_to_end": 8,
    "the_watch_tells": 12,
    "a_command_arrives": 14,
    "a_report_arrives": 14,
    "a_kubelet_acts": 9,
    "an_agent_is_dialled": 9,
    "an_adapter_answers": 14,
    "terraform_goes_on": 12,
    "a_run_goes_well_for_a_while": 4,
    "a_task_is_created": 3,
    "a_plan_is_approved": 2,
    "time_passes": 4,
    "an_operator_starts_where_none_is": 8,
    "all_goes_well_for_a_moment": 8,
    "a_pool_is_made_again": 3,
}
_PEOPLE = {
    "a_task_is_cancelled": 3,
    "a_task_is_cancelled_by_force": 1,
    "a_task_is_abandoned": 0.5,
    "a_task_is_edited": 2,
    "a_task_in_the_queue_gets_another_priority": 1,
    "a_task_is_deleted": 2,
    "a_task_is_deleted_by_force": 0.5,
    "a_task_is_made_anew": 0.5,
    "a_copy_is_restored": 0.5,
    "a_pool_is_changed": 0.5,
    "a_pool_is_deleted": 0.5,
    "a_pod_is_deleted": 1,
    "a_pod_is_deleted_by_force": 0.5,
    "a_pod_is_torn_out": 0.5,
}
_FAULTS = {
    "an_operator_starts": 1,
    "an_operator_dies": 1.5,
    "a_request_or_its_answer_is_lost": 4,
    "the_watch_breaks": 1,
    "all_is_listed_anew": 2,
    "a_command_arrives_twice": 4,
    "a_report_arrives_twice": 4,
    "an_operator_loses_a_connection": 4,
    "a_task_is_cancelled_whose_start_is_under_way": 3,
    "an_agent_loses_a_connection": 3,
    "an_adapter_fails": 1,
    "terraform_fails": 1,
    "user_code_forges_an_end": 2,
    "a_sweep_will_stall": 2,
    "an_agent_is_killed": 0.7,
    "an_agent_will_be_killed": 1,
    "a_node_is_cut_off": 0.6,
    "a_node_loses_its_power": 0.2,
    "a_node_object_is_removed": 0.7,
    "pod_gc_acts": 5,
    "a_node_returns": 3,
}
_APART: dict[str, float] = {
    "a_pod_is_evicted": 2,
    "an_agent_can_not_be_reached": 2,
    "an_agent_can_be_reached_again": 2,
}
_CLOCKS: dict[str, float] = {"an_operators_clock_is_set": 1}
_POLICIES: dict[str, float] = {"a_pool_gets_another_drain_policy": 1}
_REFUSALS: dict[str, float] = {"writes_to_a_pod_are_refused": 1, "writes_to_a_pod_are_taken_again": 1}
_DRAWN_APART = (
    ("apart", _APART, 0.3, (3, 6, 12)),
    ("clocks", _CLOCKS, 0.1, (1, 2, 3)),
    ("policies", _POLICIES, 0.1, (1, 2, 3)),
    ("forbidden", _REFUSALS, 0.1, (2, 4, 6)),
)
"""Each for a share of the histories alone, and so many: so most recorded seeds lead to what they did before."""
_CALM = "all_goes_well_for_a_moment"
"""Most histories begin with a few of these."""
_WITH_A_PLAN = 0.15
"""So many histories begin with a plan that waits."""
MOVES = (*_ALWAYS, *_PEOPLE, *_FAULTS, *_APART, *_CLOCKS, *_POLICIES, *_REFUSALS)


@dataclass(frozen=True, slots=True)
class History:
    setting: Setting
    moves: tuple[Move, ...]
    violation: str = ""
    """What went wrong; empty: nothing."""


def of_seed(seed: int) -> History:
    """Each move is chosen and made in turn; those that could not be made are left out."""
    chance = random.Random(seed)
    setting = Setting(
        min_idle=chance.choice((0, 1, 1, 2)),
        max_agents=chance.choice((1, 2, 2, 3)),
        pools=chance.choice((1, 1, 1, 2, 3)),
        loss_s=chance.choice((None, None, None, 60)),
        has_bucket=chance.random() < 0.2,
        # Of a chance of its own, so that the others stay what they were.
        max_tasks=random.Random(f"{seed} tasks").choice((1, 1, 2, 4)),
        is_taken_down=random.Random(f"{seed} pools").random() < 0.25,
    )
    weights: dict[str, float] = {**_ALWAYS}
    for some in (_PEOPLE, _FAULTS):
        share = chance.random()
        weights |= {name: weight * chance.choice((1, 1, 3)) for name, weight in some.items() if chance.random() < share}
    names, cumulated = list(weights), list(accumulate(weights.values()))
    simulation, moves = Simulation(setting), list[Move]()
    begin = _beginning(chance)
    drawn = chance.choices(names, cum_weights=cumulated, k=chance.choice((60, 120, 250, 500)))
    rest = [_move(chance, name) for name in drawn]
    for label, some, share, counts in _DRAWN_APART:
        _add_some(rest, some, share, counts, random.Random(f"{seed} {label}"))
    try:
        for move in (*begin, *rest):
            moves.append(move)
            if not getattr(simulation, move[0])(move[1]):
                moves.pop()
        simulation.settle()
    except Exception as error:
        return History(setting, tuple(moves), _said(error))
    finally:
        simulation.close()
    return History(setting, tuple(moves))


def _beginning(chance: random.Random) -> list[Move]:
    """With agents that wait, with tasks that run already, or with a plan that waits for a person."""
    if chance.random() < _WITH_A_PLAN:
        planned = ("a_run_goes_well_for_a_while", 15 * 8)
        return [("a_task_is_created", 512 * chance.choice(MANUAL)), *[(_CALM, 0)] * 6, planned, (_CALM, 0), planned]
    names = ["a_task_is_created"] * chance.choice((0, 1, 2)) + [_CALM] * chance.choice((0, 3, 4, 5, 6))
    return [_move(chance, name) for name in names]


def _add_some(
    moves: list[Move], some: Mapping[str, float], share: float, counts: Sequence[int], chance: random.Random
) -> None:
    if chance.random() < share:
        for name in chance.choices(list(some), list(some.values()), k=chance.choice(counts)):
            moves.insert(chance.randrange(len(moves) + 1), _move(chance, name))


def _move(chance: random.Random, name: str) -> Move:
    """What a task has beside the least lies above what the same pick has always meant (`kept.txt`)."""
    bits = chance.getrandbits(12)
    return name, bits >> 3 | (bits % 8 << 9 if name == "a_task_is_created" else 0)


def replayed(
    setting: Setting, moves: Sequence[Move], tell: Callable[[str], None] | None = None, *, of: Model = Simulation
) -> History:
    simulation = of(setting, tell)
    try:
        for name, pick in moves:
            getattr(simulation, name)(pick)
        simulation.settle()
    except Exception as error:
        return History(setting, tuple(moves), _said(error))
    finally:
        simulation.close()
    return History(setting, tuple(moves))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Violation) else f"our own error: {error!r}"


def shrunk(failing: History, tries: int = 3_000) -> History:
    """Fewer moves, smaller numbers and a plainer setting that break the same invariant."""
    kind = failing.violation[:2]

    def fails(setting: Setting, moves: Sequence[Move]) -> History | None:
        nonlocal tries
        tries -= 1
        found = replayed(setting, moves)
        return found if found.violation[:2] == kind else None

    best, before = failing, None
    while best != before and tries > 0:
        before = best
        size = max(1, len(best.moves) // 2)
        while size and tries > 0:
            at = 0
            while at < len(best.moves) and tries > 0:
                rest = (*best.moves[:at], *best.moves[at + size :])
                if found := fails(best.setting, rest):
                    best = found
                else:
                    at += size
            size //= 2
        for plain in (
            {"pools": 1},
            {"loss_s": None},
            {"has_bucket": False},
            {"max_tasks": 1},
            {"is_taken_down": False},
            {"min_idle": 1},
            {"max_agents": 2},
        ):
            setting = replace(best.setting, **plain)
            if setting != best.setting and (found := fails(setting, best.moves)):
                best = found
        for at, (name, pick) in enumerate(best.moves):
            for smaller in (0, pick % 8, pick % 32):
                if smaller < pick and tries > 0:
                    moves = (*best.moves[:at], (name, smaller), *best.moves[at + 1 :])
                    if found := fails(best.setting, moves):
                        best = found
                        break
    return best


def story(history: History, *, of: Model = Simulation) -> list[str]:
    """What happens in it, for a person."""
    lines: list[str] = []
    found = replayed(history.setting, history.moves, lines.append, of=of)
    return [*lines, found.violation or "nothing goes wrong"]
