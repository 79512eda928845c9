"""One workspace, two tasks, two leaders, one agent: what may happen next, so that a search can try all of it.

All acts at once, in one order, unless a fault holds it back: an operator's write, the watch, the answer to a list,
what is under way to an agent or from it. What is held back comes at any later moment, at no cost, and so do the writes
that an operator had under way when another one began to lead. Moves are names and numbers, as those of `simulation`.
Called by `search`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from terrahalt_operator.core.model import TERMINAL
from terrahalt_operator.errors import Unreachable
from terrahalt_operator.worklist import Key
from tests.simulation.api_server import WATCHED
from tests.simulation.judge import Violation
from tests.simulation.operators import RELIST, Life
from tests.simulation.pods import Connection, Pod
from tests.simulation.simulation import Setting, Simulation

_RESTS_AFTER = 500
_MAX_WAITS = 3
"""So often time passes with nothing else between: then all that is left is to see whether everything ends."""
_LISTS = (0, 3, 4)
"""Claims, pods and tasks, in the order of `World.relist`."""
_STEPS = 60
_HELLO = '{"type":"Hello"'
"""It comes once on each connection: whoever says it twice is refused."""
_A_PLAN = 8
_LATE = ("terraformtasks", "pods")
_TOLD_AT_ONCE = ("agentpools", "configmaps")
"""Writes that nobody decides anything by."""


T = TypeVar("T")


class Choice(NamedTuple):
    faults: int
    name: str
    pick: int


class Narrow(Simulation):
    def __init__(self, _: Setting | None = None, tell: Callable[[str], None] | None = None) -> None:
        super().__init__(Setting(min_idle=0, max_agents=1))
        self._late: set[tuple[str, str]] = set()
        """What is held back: (kind, of which)."""
        self._last: dict[tuple[str, int], str] = {}
        """(direction, connection) -> what came over it last."""
        self._waits = 0
        self.start_up(self.lives[0])
        self.act()
        for pick in (0, _A_PLAN):
            self.a_task_is_created(pick)
        self._tell = tell
        self.act()

    # ---- what may happen next

    def choices(self, *, in_every_order: bool = False) -> list[Choice]:
        """Nothing: it has come to an end, and `settle` says to which. `in_every_order`: writes and the steps of runs
        are late at no cost."""
        acts = [
            *self._each("a_write_is_carried_out", len(self._writes())),
            *self._each("a_run_goes_on", len(self._running())),
            *self._each("an_operator_starts_anew", not self.lives),
        ]
        late = [
            *self._each("what_was_late_arrives", len(self._late)),
            *self._each("a_write_of_the_old_leader_is_carried_out", len(self._old_writes())),
        ]
        if not acts and not late:
            if self._is_settled() or self._waits >= _MAX_WAITS:
                return []
            acts = self._each("time_passes_until_something_is_due", 1)
        return [*(acts if in_every_order else acts[:1]), *late, *self._faults()]

    def _faults(self) -> list[Choice]:
        life = self.lives[-1] if self.lives else None
        held = self._connections()
        commands, reports = ([n for n, c in enumerate(held) if (way, c.number) in self._last] for way in ("to", "from"))
        writes = len(self._writes())
        faults = [
            *self._each("a_write_is_lost", writes),
            *self._each("the_answer_to_a_write_is_lost", writes),
            *self._each("the_operator_dies_after_a_write", writes),
            *self._each("the_operator_dies", len(self.lives)),
            *self._each("another_one_leads", life is not None and self._operators < 2),
            *self._each("the_old_leader_goes_on", len(self.lives) - 1 if self.lives else 0),
            *self._each("the_operator_loses_its_connection", len(held)),
            *self._each("the_agent_loses_its_connection", len(held)),
            *[Choice(0, "a_command_comes_again", n) for n in commands],
            *[Choice(0, "a_report_comes_again", n) for n in reports],
            *self._each("commands_are_late", len(held)),
            *self._each("reports_are_late", len(held)),
            *self._each("a_write_is_late", writes),
            *self._each("the_watch_is_late", len(_LATE) if life is not None else 0),
            *self._each("a_list_is_late", len(_LISTS) if life is not None and RELIST not in life.workers else 0),
            *self._each("all_in_the_pod_is_killed", len(self._alive())),
            *self._each("the_pod_is_deleted", len(self.server.all("pods"))),
            *self._each("the_node_is_lost", len(self._alive())),
            *self._each("a_person_cancels", len(self._unended())),
            *self._each("a_person_deletes", len(self._unended())),
        ]
        return [Choice(1, name, pick) for _, name, pick in faults]

    @staticmethod
    def _each(name: str, count: int) -> list[Choice]:
        return [Choice(0, name, pick) for pick in range(count)]

    def _writes(self) -> list[tuple[Life, Key]]:
        """Those that nothing holds back, of who leads."""
        pending = _pending(self.lives[-1]) if self.lives else []
        return [(life, key) for life, key in pending if (_write_at(key), life.name) not in self._late]

    def _old_writes(self) -> list[tuple[Life, Key]]:
        return [found for life in self.lives[:-1] for found in _pending(life)]

    def _running(self) -> list[Pod]:
        return [p for p in self.pods.values() if p.jobs or any(t.is_alive and not t.is_frozen for t in p.terraforms)]

    def _alive(self) -> list[Pod]:
        return [p for p in self.pods.values() if p.is_alive]

    def _unended(self) -> list[tuple[str, str]]:
        """Those that nobody wanted to end yet."""
        return [
            (t["metadata"]["namespace"], t["metadata"]["name"])
            for t in self.tasks
            if (t.get("status") or {}).get("phase") not in TERMINAL
            and not t["spec"].get("cancel")
            and "deletionTimestamp" not in t["metadata"]
        ]

    def _connections(self) -> list[Connection]:
        return list(self.lives[-1].sockets.connections.values()) if self.lives else []

    # ---- moves that cost nothing

    def a_write_is_carried_out(self, pick: int) -> bool:
        """And its answer arrives."""
        return self._carry_out(self._writes(), pick, "")

    def a_write_of_the_old_leader_is_carried_out(self, pick: int) -> bool:
        """It was under way; its answer never arrives, as that one does nothing any more."""
        if (found := _chosen(self._old_writes(), pick)) is None:
            return False
        life, key = found
        what = life.asks[key]
        life.go_on(key)
        self.say(f"{life.name}, which leads no more: its request to {what.verb} {what.of} is carried out late")
        return self._acted()

    def what_was_late_arrives(self, pick: int) -> bool:
        if (found := _chosen(sorted(self._late), pick)) is None:
            return False
        self._late.remove(found)
        self.say(f"{' '.join(found)}: what was late arrives")
        return self._acted()

    def a_run_goes_on(self, pick: int) -> bool:
        """Until terraform's next process is there, or its end is told, or it can't."""
        if (pod := _chosen(self._running(), pick)) is None:
            return False
        came = _came(pod)
        for _ in range(_STEPS):
            if not (pod.jobs or pod.terraform_goes_on()) or not pod.is_alive:
                break
            if pod.jobs:
                pod.finish(0)
            if _came(pod) != came:
                break
        self.say(f"the run in {pod.name} goes on")
        return self._acted()

    def an_operator_starts_anew(self, _: int) -> bool:
        if self.lives or not self.an_operator_starts(0):
            return False
        self.start_up(self.lives[0])
        return self._acted()

    def time_passes_until_something_is_due(self, _: int) -> bool:
        step_s = self._until_next()
        self._advance(step_s)
        self._waits += 1
        self.say(f"{step_s:.2f} s pass")
        self.act()
        return True

    # ---- faults

    def a_write_is_lost(self, pick: int) -> bool:
        return self._carry_out(self._writes(), pick, "is lost")

    def the_answer_to_a_write_is_lost(self, pick: int) -> bool:
        return self._carry_out(self._writes(), pick, "is carried out, and its answer is lost")

    def the_operator_dies_after_a_write(self, pick: int) -> bool:
        return self._carry_out(self._writes(), pick, "is carried out, and the operator dies before it hears so")

    def the_operator_dies(self, pick: int) -> bool:
        return self.an_operator_dies(pick) and self._acted()

    def another_one_leads(self, _: int) -> bool:
        """And the one before it stands still, with its requests under way."""
        if not self.lives or self._operators > 1 or not self.an_operator_starts(0):
            return False
        self.start_up(self.lives[-1])
        return self._acted()

    def the_old_leader_goes_on(self, pick: int) -> bool:
        """As if it led: it hears all there is, and looks at what that is about, up to its next writes."""
        if (life := _chosen(self.lives[:-1], pick)) is None:
            return False
        self.say(f"{life.name}, which leads no more, goes on")
        for key in list(life.workers):
            if life.asks[key].verb == "":
                life.go_on(key)
        for _ in range(_RESTS_AFTER):
            if not (self._hear_watches(life) or self._work(life)):
                break
        return self._acted()

    def the_operator_loses_its_connection(self, pick: int) -> bool:
        if (connection := _chosen(self._connections(), pick)) is None:
            return False
        self.lives[-1].sockets.hang_up(connection)
        self.say(f"{self.lives[-1].name} loses its connection to {connection.pod.name}")
        return self._acted()

    def the_agent_loses_its_connection(self, pick: int) -> bool:
        if (connection := _chosen(self._connections(), pick)) is None:
            return False
        connection.pod.hang_up(connection)
        self.say(f"{connection.pod.name} loses its connection")
        return self._acted()

    def a_command_comes_again(self, pick: int) -> bool:
        return self._comes_again("to", pick)

    def a_report_comes_again(self, pick: int) -> bool:
        return self._comes_again("from", pick)

    def a_write_is_late(self, pick: int) -> bool:
        if (found := _chosen(self._writes(), pick)) is None:
            return False
        life, key = found
        self._late.add((_write_at(key), life.name))
        self.say(f"{life.name}: its request to {life.asks[key].verb} {life.asks[key].of} is late")
        return self._acted()

    def commands_are_late(self, pick: int) -> bool:
        """From now on, until they arrive all at once."""
        return self._are_late("commands to", self._connections(), pick)

    def reports_are_late(self, pick: int) -> bool:
        return self._are_late("reports of", self._connections(), pick)

    def the_watch_is_late(self, pick: int) -> bool:
        kind = (f"the watch of {_LATE[pick % len(_LATE)]} by", self.lives[-1].name) if self.lives else None
        if kind is None or kind in self._late:
            return False
        self._late.add(kind)
        return self.say(" ".join(kind) + " is late")

    def a_list_is_late(self, pick: int) -> bool:
        """The API server has answered it, and the answer is on its way until it is old."""
        life = self.lives[-1] if self.lives else None
        if life is None or not life.relist():
            return False
        number = _LISTS[pick % len(_LISTS)]
        for _ in range(2 * number + 1):
            life.go_on(RELIST)
        self._late.add(("a list by", life.name))
        self.say(f"{life.name} lists all anew, and the answer of list {number} is late")
        return self._acted()

    def all_in_the_pod_is_killed(self, pick: int) -> bool:
        if (pod := _chosen(self._alive(), pick)) is None:
            return False
        pod.die(137)
        self.say(f"all in {pod.name} is killed")
        return self._acted()

    def the_pod_is_deleted(self, pick: int) -> bool:
        return self.a_pod_is_deleted(pick) and self._acted()

    def the_node_is_lost(self, pick: int) -> bool:
        """With its Node object, so PodGC collects the pod; whatever runs there runs on, and nobody hears of it."""
        if (pod := _chosen(self._alive(), pick)) is None or pod.node.is_gone:
            return False
        pod.node.is_cut_off = pod.node.is_gone = True
        self.say(f"node {pod.node.name} is cut off, and its Node object is removed")
        return self._acted()

    def a_person_cancels(self, pick: int) -> bool:
        if (found := _chosen(self._unended(), pick)) is None:
            return False
        self.server.change("terraformtasks", *found, {"spec": {"cancel": True}})
        self.say(f"{found[1]} is cancelled")
        return self._acted()

    def a_person_deletes(self, pick: int) -> bool:
        if (found := _chosen(self._unended(), pick)) is None:
            return False
        self.server.take_away("terraformtasks", *found)
        self.say(f"{found[1]} is deleted")
        return self._acted()

    def _carry_out(self, writes: list[tuple[Life, Key]], pick: int, how: str) -> bool:
        if (found := _chosen(writes, pick)) is None:
            return False
        life, key = found
        what = life.asks[key]
        self.say(f"{life.name}: its request to {what.verb} {what.of} {how or 'is carried out'}")
        if how != "is lost":
            life.go_on(key)
        if "dies" in how:
            self._end(life)
        elif key in life.workers:
            life.go_on(key, Unreachable("no answer") if how else None)
        return self._acted()

    def _comes_again(self, way: str, pick: int) -> bool:
        connection = _chosen(self._connections(), pick)
        if connection is None or (frame := self._last.get((way, connection.number))) is None:
            return False
        queue = connection.to_agent if way == "to" else connection.to_operator
        queue.append(frame)
        self.say(f"what came {way} {connection.pod.name} comes again: {frame[:80]}")
        return self._acted()

    def _are_late(self, what: str, connections: list[Connection], pick: int) -> bool:
        if (connection := _chosen(connections, pick)) is None or (kind := (what, str(connection.number))) in self._late:
            return False
        self._late.add(kind)
        return self.say(f"{what} {connection.pod.name} are late from now on")

    # ---- what follows at once

    def _acted(self) -> bool:
        self._waits = 0
        self.act()
        return True

    def act(self) -> None:
        """All that is not held back, until nothing follows any more."""
        for _ in range(_RESTS_AFTER):
            self._bury_the_deposed()
            life = self.lives[-1] if self.lives else None
            has_heard = life is not None and (self._hear_watches(life) or self._dial(life) or self._hear_agents(life))
            has_worked = life is not None and self._work(life)
            if not (has_heard or has_worked or self._hear_commands() or self._let_kubelets_act()):
                break
        else:
            raise Violation("5: it never rests")
        is_open = {str(c.number) for c in self.connections if c.is_open_at_agent}
        names = {life.name for life in self.lives[-1:]}
        self._late = {what for what in self._late if what[1] in is_open or what[1] in names}
        self._last = {(way, n): frame for (way, n), frame in self._last.items() if str(n) in is_open}

    def _hear_watches(self, life: Life) -> bool:
        heard = [p for p in WATCHED if life.has_news(p) and (f"the watch of {p} by", life.name) not in self._late]
        for plural in heard:
            life.watch(plural, life.has_news(plural))
        return bool(heard)

    def _work(self, life: Life) -> bool:
        """Up to the next writes that somebody might decide something by."""
        began = life.idle_keys()
        for key in began:
            life.begin(key)
        going = [key for key in life.workers if not self._stands_still(life, key)]
        for key in going:
            life.go_on(key)
        return bool(began or going)

    def _stands_still(self, life: Life, key: Key) -> bool:
        if key == RELIST and ("a list by", life.name) in self._late:
            return True
        return _is_write(life, key)

    def _dial(self, life: Life) -> bool:
        uids = [uid for uid in life.sockets.wanted if self.can_connect(life, uid)]
        for uid in uids:
            self.connect(life, self.pods[uid])
        return bool(uids)

    def _hear_agents(self, life: Life) -> bool:
        has_heard = False
        for connection in list(life.sockets.connections.values()):
            if connection.pod.node.is_cut_off or ("reports of", str(connection.number)) in self._late:
                continue
            while connection.to_operator and connection.is_open_at_operator:
                if not connection.to_operator[0].startswith(_HELLO):
                    self._last["from", connection.number] = connection.to_operator[0]
                life.sockets.receive(connection)
                has_heard = True
            if not connection.is_open_at_agent and connection.is_open_at_operator:
                life.sockets.hang_up(connection)
                has_heard = True
        return has_heard

    def _hear_commands(self) -> bool:
        """Those of an operator that leads no more, or has lost the connection, too."""
        has_heard = False
        for connection in list(self.connections):
            if connection.pod.node.is_cut_off or ("commands to", str(connection.number)) in self._late:
                continue
            while connection.to_agent and connection.is_open_at_agent and connection.pod.is_alive:
                self._last["to", connection.number] = connection.to_agent[0]
                has_heard |= connection.pod.receive(connection)
        return has_heard

    def _let_kubelets_act(self) -> bool:
        acted = [self._kubelet(obj, 0) for obj in self.server.all("pods")]
        return self._kill_what_has_no_object() or self.pod_gc_acts(0) or any(acted)


def _write_at(key: Key) -> str:
    return f"the write at {'/'.join(key)} by"


def _is_write(life: Life, key: Key) -> bool:
    at = life.asks[key]
    return at.verb in ("create", "patch", "delete") and at.of.partition(" ")[0] not in _TOLD_AT_ONCE


def _pending(life: Life) -> list[tuple[Life, Key]]:
    return [(life, key) for key in sorted(life.workers) if _is_write(life, key)]


def _came(pod: Pod) -> int:
    return len(pod.terraforms) + len(pod.message)


def _chosen(things: list[T], pick: int) -> T | None:
    return things[pick] if pick < len(things) else None
