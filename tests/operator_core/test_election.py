"""Who leads, by pure logic: its rules one by one, then candidates with clocks of their own in random order.

In the random part every candidate reads its own clock (another offset, up to 5 % faster or slower), is frozen,
killed and started anew; requests and answers are late or lost, watches are late or broken, people delete the
Lease and make it anew. At no moment do two believe to lead, but for one that is frozen; and what that one still
sends when it thaws is refused by an agent that has heard the next one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from terrahalt_operator.core.election import (
    LEASE_S,
    RENEW_DEADLINE_S,
    RENEW_INTERVAL_S,
    REQUEST_DEADLINE_S,
    SECOND_TRY_AFTER_S,
    Create,
    Election,
    LeaderLease,
    Lost,
    Wait,
    Write,
)


def held(holder: str, version: int = 5, epoch: int = 3, lasts_s: float = LEASE_S) -> LeaderLease:
    return LeaderLease(version=version, holder=holder, epoch=epoch, lasts_s=lasts_s)


def leading(now: float = 100.0) -> Election:
    """`me` since that moment."""
    return Election("me").wrote(held("me"), sent_at=now, now=now)


def test_what_was_never_seen_is_waited_for() -> None:
    assert Election("me").due(1000.0) == Wait(math.inf)


@pytest.mark.parametrize("lasts_s", [LEASE_S, 15.0, 1.0])
def test_the_lease_of_another_is_free_once_it_has_not_changed_for_as_long_as_it_lasts(lasts_s: float) -> None:
    lease = held("other", lasts_s=lasts_s)
    election = Election("me").saw(lease, 100.0)
    free_at = 100.0 + max(LEASE_S, lasts_s)
    assert election.due(free_at - 0.001) == Wait(free_at)
    assert election.due(free_at) == Write(lease, epoch=4)
    renewed = held("other", version=6)
    assert election.saw(renewed, 103.0).due(free_at) == (
        Wait(103.0 + LEASE_S) if lasts_s <= LEASE_S else Write(renewed, epoch=4)
    )


def test_a_released_lease_is_free_at_once_and_its_epoch_goes_on() -> None:
    lease = held("", epoch=7)
    assert Election("me").saw(lease, 100.0).due(100.0) == Write(lease, epoch=8)


@pytest.mark.parametrize("known", [Election("me"), Election("me").saw(held("other"), 90.0)])
def test_an_absent_lease_is_made_without_a_holder_and_may_hide_one_who_leads(known: Election) -> None:
    absent = known.saw_none(6, 100.0)
    assert absent.due(100.0) == Create()
    empty = held("", version=7, epoch=0)
    made = absent.saw(empty, 100.1)
    assert made.due(104.0) == Wait(104.1)
    assert made.due(104.1) == Write(empty, epoch=known.highest_epoch + 1)


def test_news_that_is_older_than_what_is_known_changes_nothing() -> None:
    election = Election("me").saw(held("other", version=5), 100.0)
    assert election.saw(held("another", version=4), 101.0) == election
    assert election.saw(held("other", version=5), 101.0) == election
    assert election.saw_none(4, 101.0) == election


def test_a_term_counts_from_when_its_last_answered_write_was_sent() -> None:
    election = Election("me").wrote(held("me"), sent_at=100.0, now=100.9)
    assert election.leads(100.9)
    assert election.leads(100.0 + RENEW_DEADLINE_S - 0.001)
    assert not election.leads(100.0 + RENEW_DEADLINE_S)
    assert isinstance(election.due(100.0 + RENEW_DEADLINE_S), Lost)


def test_it_is_renewed_with_the_same_epoch_and_two_tries_fit_into_the_deadline() -> None:
    election = leading(100.0)
    assert election.due(100.5) == Wait(100.0 + RENEW_INTERVAL_S)
    assert election.due(100.0 + RENEW_INTERVAL_S) == Write(held("me"), epoch=3)
    assert RENEW_INTERVAL_S + REQUEST_DEADLINE_S <= RENEW_DEADLINE_S < LEASE_S
    assert 2 * SECOND_TRY_AFTER_S <= REQUEST_DEADLINE_S


def test_who_is_thawed_does_not_lead_whatever_answer_waits_for_it() -> None:
    thawed = leading(100.0).wrote(held("me", version=6), sent_at=101.0, now=120.0)
    assert not thawed.leads(120.0)
    assert isinstance(thawed.due(120.0), Lost)


def test_who_sees_another_one_lead_stops_at_once() -> None:
    deposed = leading(100.0).saw(held("other", version=6, epoch=4), 100.1)
    assert not deposed.leads(100.1)
    assert deposed.due(100.1) == Lost("other leads")
    assert not deposed.wrote(held("me", version=5), sent_at=100.1, now=100.2).leads(100.2)


def test_who_leads_obeys_when_somebody_releases_its_lease() -> None:
    assert isinstance(leading(100.0).saw(held("", version=6), 100.1).due(100.1), Lost)


def test_who_leads_makes_a_lease_anew_that_somebody_deleted_or_emptied() -> None:
    deleted = leading(100.0).saw_none(6, 100.1)
    assert deleted.leads(100.1)
    assert deleted.due(100.1) == Create()
    empty = held("", version=7, epoch=0)
    emptied = deleted.saw(empty, 100.2)
    assert emptied.leads(100.2)
    assert emptied.due(100.2) == Write(empty, epoch=3)


def test_a_take_over_whose_answer_was_lost_is_one_all_the_same() -> None:
    lease = held("me", version=6, epoch=4)
    election = Election("me").saw(lease, 100.0)
    assert not election.leads(100.0)
    assert election.due(100.0) == Write(lease, epoch=4)


def test_an_epoch_goes_above_every_one_that_was_seen_or_reported() -> None:
    election = leading(100.0)
    assert election.due_above(2) == Write(held("me"), epoch=4)
    assert election.due_above(9) == Write(held("me"), epoch=10)
    assert election.saw_none(6, 100.1).due_above(9) == Create()
    # Raised already, though the answer to that is still to come.
    raised = held("me", version=6, epoch=10)
    assert election.saw(raised, 100.5).due(100.0 + RENEW_INTERVAL_S) == Write(raised, epoch=10)


# ---- in random order


@dataclass
class Agent:
    """Refuses what is older than the newest that it has heard; `terms` are in the order in which they began."""

    epoch: int = 0
    heard: int = -1

    def obey(self, epoch: int, term: int) -> None:
        if epoch >= self.epoch:
            assert term >= self.heard, "an agent obeyed one that was deposed"
            self.epoch, self.heard = epoch, term


@dataclass
class Candidate:
    election: Election
    offset_s: float
    rate: float
    term: int = -1
    is_asking: bool = False
    is_frozen: bool = False
    is_over: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """What arrived while it was frozen."""

    def clock(self, at: float) -> float:
        return self.offset_s + at * self.rate


class Trial:
    """The Lease, two candidates or three, and all that can go wrong, by one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.lease: LeaderLease | None = None
        self.version = 0
        self.is_broken = True
        """Until the faults stop."""
        self.terms = 0
        self.agent = Agent()
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.candidates: list[Candidate] = []
        for _ in range(self.chance.choice((2, 2, 3))):
            self.start()

    # ---- time

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.later, (self.now + delay_s, self.count, what))

    def tell(self, who: Candidate, delay_s: float, what: Callable[[], None]) -> None:
        """It learns of this then, or when it thaws."""

        def arrive() -> None:
            if who.is_frozen:
                who.waiting.append(what)
            elif not who.is_over:
                what()
                self.act(who)

        self.after(delay_s, arrive)

    def run(self, until: float) -> None:
        while self.later and self.later[0][0] <= until:
            self.now, _, what = heapq.heappop(self.later)
            what()
            self.check()
        self.now = until

    def check(self) -> None:
        leaders = [c for c in self.alive if not c.is_frozen and c.election.leads(c.clock(self.now))]
        assert len(leaders) <= 1, f"two lead at {self.now}: {leaders}"
        for leader in leaders:
            if leader.election.epoch > self.agent.epoch or leader.term == self.agent.heard:
                self.agent.obey(leader.election.epoch, leader.term)

    @property
    def alive(self) -> list[Candidate]:
        return [c for c in self.candidates if not c.is_over]

    @property
    def leader(self) -> Candidate | None:
        return next((c for c in self.alive if c.election.leads(c.clock(self.now))), None)

    # ---- candidates

    def start(self) -> None:
        name = f"c{len(self.candidates)}"
        offset_s, rate = self.chance.uniform(0, 1e6), self.chance.uniform(0.95, 1.05)
        who = Candidate(Election(name), offset_s, rate)
        self.candidates.append(who)
        self.look(who)

    def act(self, who: Candidate) -> None:
        match who.election.due(who.clock(self.now)):
            case Lost():
                self.end(who)
            case Wait(until) if until < math.inf:
                self.after((until - who.clock(self.now)) / who.rate + 1e-6, lambda: self.wake(who))
            case Wait():
                pass
            case Create() | Write() as due:
                self.ask(who, due)

    def wake(self, who: Candidate) -> None:
        if not who.is_frozen and not who.is_over:
            self.act(who)

    def end(self, who: Candidate) -> None:
        """Kubernetes starts another one."""
        who.is_over = True
        self.after(self.chance.uniform(0.5, 2.0), self.start)

    def ask(self, who: Candidate, due: Create | Write) -> None:
        if who.is_asking:
            return
        who.is_asking, is_answered = True, False

        def send() -> None:
            if not is_answered and not self.fails(0.15):
                sent_at = who.clock(self.now)
                self.after(self.delay(), lambda: serve(sent_at))

        def serve(sent_at: float) -> None:
            if self.lease == (due.replaces if isinstance(due, Write) else None):
                done = self.put(who.election.identity, due.epoch) if isinstance(due, Write) else self.put("", 0)
                if not self.fails(0.2):
                    self.tell(who, self.delay(), lambda: take(done, sent_at))
            else:
                self.tell(who, self.delay(), refused)

        def take(done: LeaderLease, sent_at: float) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered, who.is_asking = True, False
                if isinstance(due, Create):
                    self.saw(who, done)
                    return
                who.election = who.election.wrote(done, sent_at, who.clock(self.now))
                if who.election.epoch and who.term < 0:
                    who.term = self.terms
                    self.terms += 1
                is_known = self.agent.heard in (-1, who.term) or self.agent.epoch < who.election.epoch
                if who.election.leads(who.clock(self.now)) and not is_known:
                    self.ask(who, who.election.due_above(self.agent.epoch))

        def refused() -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered, who.is_asking = True, False
                self.look(who)

        def give_up() -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered, who.is_asking = True, False

        send()
        if isinstance(due, Write):
            self.tell(who, SECOND_TRY_AFTER_S, send)
        self.tell(who, REQUEST_DEADLINE_S, give_up)

    def look(self, who: Candidate) -> None:
        """A list, after which a watch goes on."""

        def serve() -> None:
            lease, version = self.lease, self.version

            def see() -> None:
                if lease:
                    who.election = who.election.saw(lease, who.clock(self.now))
                else:
                    who.election = who.election.saw_none(version, who.clock(self.now))

            self.tell(who, self.delay(), see)

        self.after(self.delay(), serve)

    # ---- the API server, and people

    def put(self, holder: str, epoch: int) -> LeaderLease:
        self.version += 1
        self.lease = done = LeaderLease(self.version, holder, epoch)
        for who in self.alive:
            if self.fails(0.2):
                self.after(self.chance.uniform(0, 3), lambda who=who: self.look(who))  # type: ignore[misc]
            else:
                self.tell(who, self.delay(), lambda who=who: self.saw(who, done))  # type: ignore[misc]
        return done

    def saw(self, who: Candidate, lease: LeaderLease) -> None:
        who.election = who.election.saw(lease, who.clock(self.now))

    def delete(self) -> None:
        self.version += 1
        self.lease, version = None, self.version

        def saw_none(who: Candidate) -> None:
            who.election = who.election.saw_none(version, who.clock(self.now))

        for who in self.alive:
            if not self.fails(0.3):
                self.tell(who, self.delay(), lambda who=who: saw_none(who))  # type: ignore[misc]

    def delay(self) -> float:
        return self.chance.choice((0.001, 0.01, 0.3, 1.2)) if self.is_broken else 0.005

    def fails(self, how_often: float) -> bool:
        return self.is_broken and self.chance.random() < how_often

    def trouble(self) -> None:
        """One of all that can happen to a candidate or to the Lease."""
        who = self.chance.choice(self.alive) if self.alive else None
        match self.chance.randrange(7):
            case 0 if who and not who.is_frozen:
                self.freeze(who, self.chance.uniform(0.5, 12))
            case 1 if (leader := self.leader) and not leader.is_frozen:
                self.freeze(leader, self.chance.uniform(0.5, 12))
            case 2 if who:
                self.end(who)
            case 3 if self.lease:
                self.delete()
            case 4 if old := self.lease:
                self.delete()
                # From somebody's file, a moment later; or without its holder and epoch.
                holder, epoch = self.chance.choice(((old.holder, old.epoch), ("", 0)))
                self.after(self.delay(), lambda: None if self.lease else void(self.put(holder, epoch)))
            case 5 if leader := self.leader:
                if not leader.is_frozen:
                    self.release(leader)
            case _:
                pass

    def freeze(self, who: Candidate, lasts_s: float) -> None:
        """Before it was stopped it had just asked whether it leads, and the command was under way."""
        epoch = who.election.epoch if who.election.leads(who.clock(self.now)) else 0
        is_heard = who.term == self.agent.heard

        def thaw() -> None:
            who.is_frozen = False
            if epoch and is_heard:
                self.agent.obey(epoch, who.term) if epoch >= self.agent.epoch else None
            for what in who.waiting:
                if not who.is_over:
                    what()
            who.waiting.clear()
            if not who.is_over:
                self.act(who)

        who.is_frozen = True
        self.after(lasts_s, thaw)

    def release(self, who: Candidate) -> None:
        """SIGTERM: it writes nothing any more, and lets go of what it holds."""
        lease = who.election.lease
        self.end(who)
        if lease and self.lease and lease.version == self.lease.version:
            self.put("", who.election.epoch)


def void(_: object) -> None:
    return


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_two_never_lead_at_one_moment_and_the_deposed_command_nobody(first: int) -> None:
    terms = 0
    for seed in range(first, first + 250):
        trial = Trial(seed)
        for _ in range(30):
            trial.run(trial.now + trial.chance.uniform(0.05, 4))
            trial.trouble()
        trial.is_broken = False
        for who in trial.alive:
            trial.look(who)
        trial.run(trial.now + 30)
        assert trial.leader, f"nobody leads at the end of seed {seed}"
        assert trial.lease
        assert trial.lease.holder == trial.leader.election.identity
        terms += trial.terms
    assert terms > 250 * 4, "then this shows little"
