"""What one round will do, drawn before anything happens: a chain of runs on one state, each with its troubles.

A pure function of the seed and the round's number, so that a seed repeats the same runs and the same troubles
at the same moments of them, however long anything takes. Called by `test_random_runs`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from terrahalt_protocol.messages import Action, Step
from tests.agent_terraform.modules import local_exec, reading, thing, trial
from tests.backends.faults import GET, LOCK, POST, UNLOCK, Fault

MARKS = "the-folder-of-the-marks"
"""Stands for it in a command, until `Shape.files`."""
COMMAND = "c"
"""How their names begin."""


class Trouble(Enum):
    """Its value says how it is told."""

    CANCEL = "cancel"
    CANCEL_TWICE = "cancel twice at once"
    DELETE = "cancel because it is deleted"
    FORCE = "force"
    SHORTEN = "cancel with a grace of 1 s"
    SIGTERM = "SIGTERM to the agent"
    KILL_TERRAFORM = "kill -9 terraform"
    KILL_PROVIDER = "kill -9 the providers"
    STOP_TERRAFORM = "stop terraform"
    STOP_PROVIDER = "stop the providers"
    KILL_ALL = "kill -9 the agent and all that it has started"
    FREEZE_AGENT = "freeze the agent"
    BACKEND = "break the backend"


_WEIGHTS = {
    Trouble.CANCEL: 10, Trouble.CANCEL_TWICE: 3, Trouble.DELETE: 2, Trouble.FORCE: 5, Trouble.SHORTEN: 3,
    Trouble.SIGTERM: 3, Trouble.KILL_TERRAFORM: 3, Trouble.KILL_PROVIDER: 3, Trouble.STOP_TERRAFORM: 0.3,
    Trouble.STOP_PROVIDER: 1, Trouble.KILL_ALL: 1.5, Trouble.FREEZE_AGENT: 2,
}  # fmt: skip
_BREAKS_BACKEND = 0.3
_WELL = (("",), ("",), ("",), ("sleep",), ("sleep",), ("work",))
"""Scripts of tests/provider/script.go; "sleep" and "work" get a time."""
_BAD = {
    "create": (
        ("linger 200ms",), ("hang",), ("finish", "hang"), ("sleep 60s",), ("work 60s",), ("fail",), ("crash",),
        ("finish", "keep", "fail"), ("finish", "crash"), ("finish", "keep", "sleep 60s"), ("fork", "work"),
        ("cling", "sleep"),
    ),
    "read": (("hang",), ("fail",), ("sleep 60s",), ("crash",)),
    "update": (("linger 200ms",), ("hang",), ("sleep 60s",), ("fail",), ("crash",)),
    "delete": (("linger 200ms",), ("hang",), ("finish", "hang"), ("sleep 60s",), ("fail",), ("crash",)),
}  # fmt: skip
_ENDLESS_WORDS = ("linger", "hang", "sleep 60s", "work 60s")
_FAILING_WORDS = ("fail", "crash")
_COMMANDS = {
    "quick": "touch {mark}",
    "slow": "sleep {seconds}; touch {mark}",
    "deaf": "trap '' INT TERM HUP; sleep {seconds}; touch {mark}",
    "talking": "head -c 400000 /dev/zero | tr '\\0' x; echo; touch {mark}",
    "leaving a process": "(setsid sleep 300 >/dev/null 2>&1 &); touch {mark}",
    "leaving a hidden process": "(env -i setsid sh -c 'sleep 300 & sleep 300' >/dev/null 2>&1 &); touch {mark}",
    "endless": "sleep 300; touch {mark}",
    "holding the pipe": "(setsid sleep 300 &); touch {mark}",
    "failing": "sleep {seconds}; exit 3",
}
_ENDLESS_COMMANDS = ("endless", "holding the pipe")


@dataclass(frozen=True)
class Thing:
    """Of the provider `trial`; the words of its scripts by the call."""

    name: str
    after: tuple[str, ...]
    scripts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Command:
    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Shape:
    things: tuple[Thing, ...]
    readings: tuple[Thing, ...]
    commands: tuple[Command, ...]
    ballast_kb: int
    """Of a state that takes its time to be written. It is there twice: s3 would get more than 5 MB in parts."""

    def files(self, marks: str) -> dict[str, str]:
        blocks = [thing(t.name, ", ".join(t.after), **_lists(t.scripts)) for t in self.things]
        blocks += [reading(t.name, "", **_lists(t.scripts)) for t in self.readings]
        blocks += [local_exec(c.text.replace(MARKS, marks), c.name) for c in self.commands]
        if self.ballast_kb:
            blocks.append(_ballast(self.ballast_kb))
        if self.things or self.readings:
            return trial(*blocks)
        return {"main.tf": "".join(blocks)}

    @property
    def words(self) -> list[str]:
        return [word for t in (*self.things, *self.readings) for script in t.scripts.values() for word in script]

    @property
    def is_endless(self) -> bool:
        """Or so slow that it is not waited for."""
        by_word = any(word.startswith(_ENDLESS_WORDS) for word in self.words)
        return by_word or any(c.kind in _ENDLESS_COMMANDS for c in self.commands)

    @property
    def may_fail(self) -> bool:
        return any(word in _FAILING_WORDS for word in self.words) or any(c.kind == "failing" for c in self.commands)

    @property
    def names(self) -> set[str]:
        return {t.name for t in self.things}

    def __str__(self) -> str:
        odd = [
            f"{t.name} {call}: {'; '.join(script)}"
            for t in (*self.things, *self.readings)
            for call, script in t.scripts.items()
            if script
        ]
        odd += [f"{c.name}: {c.kind}" for c in self.commands]
        ballast = f", {self.ballast_kb} kB more" if self.ballast_kb else ""
        return f"{len(self.things)} things, {len(self.readings)} readings{ballast}" + "".join(
            f"\n      {line}" for line in odd
        )


@dataclass(frozen=True)
class Moment:
    """So long after the run has told of this step."""

    step: Step
    after_s: float

    def __str__(self) -> str:
        return f"{self.step.value} + {self.after_s:.3f} s"


@dataclass(frozen=True)
class Happening:
    at: Moment
    trouble: Trouble
    lasts_s: float | None = None
    """None: to the end of the run; of what does not last it has no meaning."""
    verb: str = ""
    fault: Fault | None = None

    def __str__(self) -> str:
        if self.fault is not None:
            lasts = "to the end" if self.lasts_s is None else f"for {self.lasts_s:.3f} s"
            return f"{self.at}: the backend's {self.verb}: {self.fault.name} {lasts}"
        lasts = f" for {self.lasts_s:.3f} s" if self.trouble is Trouble.FREEZE_AGENT else ""
        return f"{self.at}: {self.trouble.value}{lasts}"


@dataclass(frozen=True)
class PlannedRun:
    action: Action
    shape: Shape
    happenings: tuple[Happening, ...]
    closes_after_s: float
    """When all has happened, and it still runs, it is cancelled: most shapes end by themselves long before."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Fields of its `Start`: grace, timeouts."""
    has_foreign_lock: bool = False
    """Somebody else has the lock of the state meanwhile."""
    frees_lock: bool = True
    """An administrator first frees a lock that the run before has left; else this run meets it."""

    def __str__(self) -> str:
        limits = "".join(f", {name} {value}" for name, value in self.limits.items())
        lock = ", somebody else has the lock" if self.has_foreign_lock else ""
        lock += "" if self.frees_lock else ", a lock that was left stays"
        lines = [f"{self.action.value}: {self.shape}", *(f"at {happening}" for happening in self.happenings)]
        return "\n    ".join([*lines, f"cancelled after {self.closes_after_s:.0f} s more{limits}{lock}"])


@dataclass(frozen=True)
class Plan:
    number: int
    place: str
    runs: tuple[PlannedRun, ...]

    def __str__(self) -> str:
        runs = [f"  run {n}: {run}" for n, run in enumerate(self.runs)]
        return "\n".join([f"round {self.number}, its state in {self.place}", *runs])


def plan(seed: int, number: int) -> Plan:
    chance = random.Random(f"{seed}/agent/{number}")
    place = chance.choices(("local", "http", "s3", "pg"), (4, 3, 1.5, 1.5))[0]
    shape = _shape(chance)
    runs: list[PlannedRun] = []
    for n in range(chance.choices((1, 2, 3), (4, 4, 2))[0]):
        actions = (Action.APPLY, Action.PLAN, Action.DESTROY)
        action = chance.choices(actions, (8, 1, 0.2) if n == 0 else (5, 1, 4))[0]
        if n and action is not Action.DESTROY:
            shape = _changed(chance, shape)
        is_endless = shape.is_endless or any(run.shape.is_endless for run in runs)
        runs.append(_run(chance, place, action, shape, is_endless=is_endless))
    return Plan(number, place, tuple(runs))


def _run(chance: random.Random, place: str, action: Action, shape: Shape, *, is_endless: bool) -> PlannedRun:
    count = chance.choices((0, 1, 2, 3), (2, 6, 2, 1))[0]
    happenings = [_happening(chance, place) for _ in range(count)]
    limits = {"cancel_grace_s": chance.choices((1, 2, 30), (5, 2, 2))[0]}
    foreign = chance.random() < 0.06
    if chance.random() < 0.06:
        limits["timeout_s"] = chance.randint(1, 3)
    if chance.random() < 0.04:
        limits["no_output_timeout_s"] = chance.randint(1, 2)
    if chance.random() < 0.03:
        limits["init_timeout_s"] = 1
    has_foreign_lock = foreign and place in ("http", "s3")
    if has_foreign_lock:
        limits["lock_timeout_s"] = chance.randint(1, 2)
    closes_after_s = chance.uniform(0.5, 3) if is_endless else 30.0
    return PlannedRun(action, shape, tuple(happenings), closes_after_s, limits, has_foreign_lock, chance.random() < 0.6)


def _happening(chance: random.Random, place: str) -> Happening:
    step = chance.choices((Step.PREPARE, Step.INIT, Step.PLAN, Step.APPLY), (0.5, 1, 2, 8))[0]
    # Around the begin of a process, while its first resources are made, and later.
    at = Moment(step, chance.choice((chance.uniform(0, 0.15), chance.uniform(0, 0.6), chance.uniform(0, 1.5))))
    lasts_s = chance.uniform(0.1, 1.5)
    to_the_end = chance.random() < 0.3
    verb, fault = chance.choice((GET, LOCK, POST, UNLOCK)), chance.choice(list(Fault))
    if chance.random() < _BREAKS_BACKEND and place != "local":
        return Happening(at, Trouble.BACKEND, None if to_the_end else lasts_s, verb, fault)
    return Happening(at, chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0], lasts_s)


def _shape(chance: random.Random) -> Shape:
    things: list[Thing] = []
    depth = chance.choice((0.0, 0.3, 0.9))
    for n in range(chance.choice((0, 1, 2, 3, 4, 6, 8, 12, 20))):
        after = (f"trial_thing.{chance.choice(things).name}",) if things and chance.random() < depth else ()
        things.append(Thing(f"t{n}", after, _scripts(chance, "create", "update", "delete")))
    readings = [Thing(f"d{n}", (), _scripts(chance, "read")) for n in range(chance.choice((0, 0, 0, 1, 2)))]
    commands = [_command(chance, f"{COMMAND}{n}") for n in range(chance.choice((0, 0, 0, 1, 2)))]
    if not things and not commands:
        commands.append(_command(chance, f"{COMMAND}0"))
    return _spoilt(
        chance, Shape(tuple(things), tuple(readings), tuple(commands), chance.choices((0, 300, 2000), (12, 1, 1))[0])
    )


def _changed(chance: random.Random, shape: Shape) -> Shape:
    """The same with some resources less, some new ones, and other scripts."""
    kept = [t for t in shape.things if chance.random() < 0.8]
    names = {f"trial_thing.{t.name}" for t in kept}
    things = [
        Thing(t.name, tuple(a for a in t.after if a in names), _scripts(chance, "create", "update", "delete"))
        if chance.random() < 0.5
        else Thing(t.name, tuple(a for a in t.after if a in names), t.scripts)
        for t in kept
    ]
    unused = [n for n in range(20, 40) if f"trial_thing.t{n}" not in names]
    new = chance.sample(unused, chance.choice((0, 1, 3)))
    things += [Thing(f"t{n}", (), _scripts(chance, "create", "update", "delete")) for n in new]
    return _spoilt(chance, Shape(tuple(things), shape.readings, shape.commands, shape.ballast_kb))


def _spoilt(chance: random.Random, shape: Shape) -> Shape:
    """A third has one thing, or two, whose provider does something bad."""
    things = list(shape.things)
    if things and chance.random() < 0.35:
        for _ in range(chance.choice((1, 1, 2))):
            which = chance.randrange(len(things))
            call = chance.choices(list(_BAD), (8, 1, 2, 3))[0]
            script = chance.choice(_BAD[call])
            timed = tuple(f"{word} 300ms" if word in ("work", "sleep") else word for word in script)
            things[which] = Thing(things[which].name, things[which].after, {**things[which].scripts, call: timed})
    return Shape(tuple(things), shape.readings, shape.commands, shape.ballast_kb)


def _scripts(chance: random.Random, *calls: str) -> dict[str, tuple[str, ...]]:
    return {call: _well(chance) for call in calls}


def _well(chance: random.Random) -> tuple[str, ...]:
    (word,) = chance.choice(_WELL)
    longest_ms = chance.choice((50, 200, 800))
    return (f"{word} {chance.randint(1, longest_ms)}ms",) if word else ()


def _command(chance: random.Random, name: str) -> Command:
    kind = chance.choices(list(_COMMANDS), (4, 4, 2, 1, 2, 1, 1, 1, 1))[0]
    text = _COMMANDS[kind].format(seconds=round(chance.uniform(0, 0.8), 2), mark=f"{MARKS}/{name}")
    return Command(name, kind, text)


def _ballast(kilobytes: int) -> str:
    return f"""
resource "terraform_data" "ballast" {{
  input = join("", [for n in range({kilobytes // 10}) : "{"x" * 10_000}"])
}}
"""


def _lists(scripts: Mapping[str, Sequence[str]]) -> dict[str, list[str] | str]:
    return {call: list(script) for call, script in scripts.items() if script}
