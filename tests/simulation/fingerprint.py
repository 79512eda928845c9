"""When two states of the simulation are one: the same text, but for the numbers of versions.

All that can decide what follows is in it: objects, what each operator has seen, where its workers stand and with which
variables, agents, what is under way, what the judge knows. A resourceVersion is compared with those of the same object
only, so each counts as its place among those that are remembered anywhere; while a list is under way, whose version is
compared with all, they stay as they are. Called by `search`.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Coroutine
from enum import Enum
from typing import Any

import msgspec

from terrahalt_operator.store import Shelf
from tests.simulation.api_server import WATCHED
from tests.simulation.narrow import Narrow
from tests.simulation.operators import RELIST, Life
from tests.simulation.pods import Pod
from tests.simulation.terraform import Terraform

_VERSION = re.compile(r"(resourceVersion': '|resource_version=')(\d+)")
_SELDOM_CHANGES = frozenset({"start", "_times", "locks", "_locks", "_server", "_witness", "_now", "node", "socket"})
_PLAIN = (str, int, float, bool, bytes, type(None), Enum)


def fingerprint(simulation: Narrow) -> bytes:
    text = repr(_state(simulation))
    if not any(RELIST in life.workers for life in simulation.lives):
        text = _ranked(text, simulation.server.owner)
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _ranked(text: str, owner: dict[str, str]) -> str:
    of_object: dict[str, set[int]] = {}
    for found in _VERSION.finditer(text):
        of_object.setdefault(owner[found[2]], set()).add(int(found[2]))
    ranks = {str(v): f"{uid}#{n}" for uid, seen in of_object.items() for n, v in enumerate(sorted(seen))}
    return _VERSION.sub(lambda found: found[1] + ranks[found[2]], text)


def _state(s: Narrow) -> Any:
    judge = s.judge
    return (
        s.now,
        s._waits,
        s._operators,
        sorted(s._late),
        sorted(s._last.items()),
        [(node.is_cut_off, node.is_gone) for node in s.nodes],
        [(plural, sorted(objects.items())) for plural, objects in sorted(s.server.kinds.items())],
        [sorted(found.items()) for found in (s.locks.held, s.locks.serials, s.locks.planned)],
        [_plain(task) for task in judge.tasks.values()],
        [(run_id, run.pod.uid, run.applies, run.steps) for run_id, run in judge.runs.items()],
        sorted((run_id, end.result, end.cancel) for run_id, end in judge.ends.items()),
        sorted(judge._cancelled),
        sorted(judge._refused),
        sorted(judge._epochs.items()),
        sorted((by, sorted(runs)) for by, runs in judge._made.items()),
        sorted(judge._unclaimed),
        [_pod(pod) for pod in s.pods.values()],
        [
            (c.number, c.pod.uid, c.to_agent, c.to_operator, c.is_open_at_agent, c.is_open_at_operator)
            for c in s.connections
            if c.is_open_at_agent or c.is_open_at_operator
        ],
        [_life(life) for life in s.lives],
    )


def _pod(pod: Pod) -> Any:
    scalars = (pod.uid, pod.is_alive, pod.exit_code, pod.finished_at, pod.message, pod.jobs, list(pod.starts))
    ends = (pod.is_terminating, pod.killed_at, pod.node.name, sorted(pod.connections))
    return scalars, ends, _plain(pod.agent), [_terraform(t) for t in pod.terraforms]


def _terraform(t: Terraform) -> Any:
    state = (t.turn, t.is_alive, t.is_frozen, t.is_stopping, t.was_interrupted, t.has_providers, t.exit_code, t.unread)
    return t.start.run_id, t.step, state


def _life(life: Life) -> Any:
    world, effects, sockets = life.world, life._effects, life.sockets
    tails = [(plural, life._server.log[plural][life._seen_of[plural] :]) for plural in WATCHED]
    kinds: tuple[Shelf[Any], ...] = (world.tasks, world.pools, world.pods)
    shelves = [
        ([(uid, s.raw(uid)) for uid in sorted(s.values)], sorted(s.values.items()), sorted(s._gone)) for s in kinds
    ]
    claims = world.claims
    return (
        (life.name, life.is_ready, life.deposed, life.leadership.epoch, repr(life._runs)),
        tails,
        shelves,
        [sorted(index.items()) for index in (claims.by_name, claims.by_task, claims.by_pod)],
        sorted((name, f"resource_version='{version}'") for name, version in claims._released.items()),
        [
            sorted(found.items())
            for found in (world.queueing, world.state_locks, world.logs_kept, world.status_written_at)
        ],
        [sorted(found.items()) for found in (world.failed_starts, effects._pool_written_at, world.refused_agents)],
        sorted(world.begins_at.items()),
        sorted(world.refused_budgets.items()),
        sorted(life.sockets._unreached.items()),
        (sorted(effects._unanswered.items()), sorted(world.budgets), sorted(world.traces), sorted(world.refused)),
        (sorted(sockets.wanted), sorted((uid, c.number) for uid, c in sockets.connections.items())),
        [(uid, _plain(connection)) for uid, connection in sorted(sockets._connections.items())],
        sorted(sockets._proven.items()),
        (sorted(life.woken), sorted(life.timers.items())),
        [(key, _frames(life.workers[key])) for key in sorted(life.workers)],
    )


def _frames(coroutine: Coroutine[Any, Any, None]) -> Any:
    """Where it stands, and with which variables, down to the request."""
    frames, at = [], coroutine
    while (frame := getattr(at, "cr_frame", None)) is not None:
        found = {name: _plain(value) for name, value in frame.f_locals.items() if name != "self"}
        frames.append((frame.f_code.co_qualname, frame.f_lasti, found))
        at = at.cr_await  # type: ignore[attr-defined]
    return frames


def _plain(value: Any) -> Any:
    """What has no text of its own, by its attributes."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple, deque)):
        return [_plain(each) for each in value]
    if isinstance(value, msgspec.Struct) or vars(type(value)).get("__hash__") is not None:
        return value  # frozen
    if callable(value):
        return type(value).__name__
    names = value.__dict__ if hasattr(value, "__dict__") else value.__slots__
    return type(value).__name__, [(n, _plain(getattr(value, n))) for n in names if n not in _SELDOM_CHANGES]
