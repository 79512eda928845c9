"""Whether a run ended as it has to, by what was seen outside of terraform and of the agent.

Nothing is alive, the label is what the cloud saw, no lock of another is gone, no state is lost that the report
did not call so. What may have become of a run follows from what was done to it. Called by `test_random_runs`.
"""

from __future__ import annotations

from collections.abc import Iterator

from terrahalt_protocol.messages import Action, LockCondition, Outcome, Result, StateCondition
from tests.agent_terraform.soak.plan import Trouble
from tests.agent_terraform.soak.runs import Ran, Seen
from tests.backends.faults import LOCK, UNLOCK, Fault

_CHANGES = ("create", "update", "delete")
_UNSAVED = "and what it had done since it last saved it"
"""A process that did not come to its own end has saved its state only now and then."""
_TIMEOUTS = {"TimedOut": "timeout_s", "NoOutputTimedOut": "no_output_timeout_s", "InitTimedOut": "init_timeout_s"}
_OF_TERRAFORM = ("InitFailed", "PlanFailed", "ApplyFailed")


def violations(ran: Ran, known: frozenset[str], *, may_fail: bool) -> list[str]:
    """`known`: names of which cloud and state told different things already, after a run that said so.

    `may_fail`: a provider or a command of this state is told to fail."""
    assert ran.after is not None
    assert ran.settled is not None
    found: list[str] = []
    if ran.before.lock_id and not ran.after.lock_id:
        found.append(f"the lock {ran.before.lock_id}, which was there before, is gone")
    if ran.report is None:
        if not ran.hit(Trouble.KILL_ALL):
            found.append("it has no end")
        return found
    result = ran.report.result
    assert result is not None
    found += [f"alive when its report came: {line}" for line in ran.alive]
    found += [f"still at work in the cloud: {' '.join(operation)}" for operation in ran.at_work]
    if ran.sealed != ran.report:
        found.append(f"its termination message is not its report: {ran.sealed}")
    if ran.agent_ended != 0 and not ran.hit(Trouble.KILL_ALL):
        found.append(f"its agent ended with {ran.agent_ended} after the ack")
    found += _of_label(ran, result, known, may_fail=may_fail)
    found += _of_state(ran, result, ran.after, known)
    found += _of_lock(ran, result, ran.after.lock_id)
    return found


def still_known(ran: Ran) -> frozenset[str]:
    """For the next run of the same state."""
    assert ran.settled is not None
    return ran.settled.unlike


def needs_a_person(ran: Ran) -> bool:
    """Before there can be another run of the same state."""
    assert ran.settled is not None
    result = ran.report.result if ran.report else None
    is_corrupt = result is not None and result.state is StateCondition.CORRUPT
    return is_corrupt or bool(ran.settled.state and ran.settled.saved is None)


def _of_label(ran: Ran, result: Result, known: frozenset[str], *, may_fail: bool) -> Iterator[str]:
    assert ran.after is not None
    match result.outcome:
        case Outcome.SUCCEEDED:
            yield from _of_success(ran, result, ran.after, known)
        case Outcome.CANCELLED:
            if result.reason not in ran.asked:
                yield f"{result.reason}, and what was asked is {sorted(ran.asked)}"
            if result.exit_code == 0 and ran.has_apply:
                yield "Cancelled, and its apply came to its end"
        case Outcome.FAILED:
            if not _may_be(result.reason, ran, may_fail=may_fail):
                yield f"it failed, and nothing was done to it that makes it {result.reason}: {result.message}"
    if "nothing was changed" in result.message and _changes(ran.before) != _changes(ran.after):
        yield f"nothing was changed, it says, and the cloud saw {ran.after.begun - ran.before.begun}"
    if ran.planned.action is Action.PLAN and _changes(ran.before) != _changes(ran.after):
        yield f"a plan, and the cloud saw {ran.after.begun - ran.before.begun}"


def _of_success(ran: Ran, result: Result, after: Seen, known: frozenset[str]) -> Iterator[str]:
    if (result.exit_code, result.state) != (0, StateCondition.COMPLETE):
        yield f"Succeeded, with exit code {result.exit_code} and a state that is {result.state.value}"
    if ran.planned.action is Action.PLAN:
        return
    wanted = ran.planned.shape.names if ran.planned.action is Action.APPLY else frozenset[str]()
    if not wanted <= after.objects or after.objects - wanted - known:
        yield f"Succeeded, and the cloud has {sorted(after.objects)} of {sorted(wanted)}"
    if after.things != wanted:
        yield f"Succeeded, and the state has {sorted(after.things)} of {sorted(wanted)}"
    commands = {command.name for command in ran.planned.shape.commands}
    if ran.planned.action is Action.APPLY and not commands <= after.marks | known:
        yield f"Succeeded, and of its commands only {sorted(after.marks & commands)} came to their end"


def _may_be(reason: str, ran: Ran, *, may_fail: bool) -> bool:
    has_lock, is_broken = bool(ran.before.lock_id), ran.hit(Trouble.BACKEND)
    if reason in _TIMEOUTS:
        return _TIMEOUTS[reason] in ran.planned.limits
    if reason == "TerraformKilled":
        return ran.hit(Trouble.KILL_TERRAFORM)
    if reason == "LockTimedOut":
        return has_lock or is_broken
    if reason == "NotPersisted":
        return is_broken
    # terraform gives up a provider that has not answered it for 20 s.
    has_lost_provider = ran.hit(Trouble.KILL_PROVIDER, Trouble.STOP_PROVIDER)
    return reason in _OF_TERRAFORM and (may_fail or has_lock or is_broken or has_lost_provider)


def _of_state(ran: Ran, result: Result, after: Seen, known: frozenset[str]) -> Iterator[str]:
    if result.state in (StateCondition.CORRUPT, StateCondition.UNKNOWN):
        return
    old, new = ran.before.saved, after.saved
    if new is None and (old is not None or after.state):
        # terraform makes an empty file first, and a first apply that is killed leaves it so.
        yield f"the state can't be read, and is called {result.state.value}: {after.state[:80]!r}"
        return
    if old and new and (new["lineage"], new["serial"]) < (old["lineage"], old["serial"]):
        yield f"the state was {old['lineage']} {old['serial']} and is {new['lineage']} {new['serial']}"
    unlike = after.unlike - known
    if result.state is StateCondition.NOT_PERSISTED:
        return
    named = {address.rpartition(".")[2] for address in result.open_addresses}
    if not unlike <= named and not (result.state is StateCondition.INCOMPLETE and _UNSAVED in result.message):
        yield f"cloud and state differ in {sorted(unlike)}, and the state, it says, is {result.state.value}"


def _of_lock(ran: Ran, result: Result, lock_id: str) -> Iterator[str]:
    lock, before = result.lock, ran.before.lock_id
    if before:
        if lock_id != before:
            yield f"the lock was {before} and is {lock_id or 'free'}"
        if lock.condition is LockCondition.HELD:
            yield f"it takes the lock of another for its own: {lock}"
        return
    if lock_id and lock.condition is LockCondition.RELEASED and not _hung(ran, LOCK):
        yield f"the lock {lock_id} is held, and it says Released"
    if lock.condition is LockCondition.HELD and lock_id != lock.id and not _hung(ran, UNLOCK):
        yield f"it says that the lock {lock.id} is held, and that is {lock_id or 'free'}"


def _hung(ran: Ran, verb: str) -> bool:
    """A request that was on its way may have arrived after the agent's look, and before this one."""
    return any(happening.verb == verb and happening.fault is Fault.HANG for happening in ran.done)


def _changes(seen: Seen) -> list[int]:
    return [seen.begun[kind] for kind in _CHANGES]
