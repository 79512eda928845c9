"""What a round left behind: its claims, locks, states and reports, and who led meanwhile.

Read from the objects themselves, each version as a watch told it, so it takes a node watcher that tells the states
too. Complements `judge`, which looks at one task after the other. Called by `test_chaos` once everything has ended.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from tests.e2e import evidence
from tests.e2e.installation import OPERATOR, SYSTEM, Installation
from tests.e2e.kubectl import Json
from tests.e2e.tasks import RunningTask
from tests.e2e.timeline import Sighting
from tests.soak.judge import collected
from tests.soak.troubles import Life, Round


@dataclass(frozen=True)
class Written:
    """One version of a state, as terraform has saved it."""

    version: int
    state: Json

    @property
    def serial(self) -> int:
        return int(self.state["serial"])

    def has_whole(self, words: str) -> bool:
        """A resource with these words among its attributes, and whose making was not broken off."""
        instances = [i for r in self.state["resources"] for i in r["instances"]]
        return any(words in json.dumps(i.get("attributes")) and i.get("status") != "tainted" for i in instances)


def violations(round_: Round) -> list[str]:
    here = round_.installation
    checks: list[Callable[[], None]] = [partial(assert_no_claim_is_left, here), partial(assert_one_leader_each, here)]
    for life in round_.lives:
        checks += [partial(assert_report_was_believed, life.task), partial(assert_state_has_it, life)]
    for task in {life.task.workspace: life.task for life in round_.lives}.values():
        checks += [partial(assert_no_lock_is_left, task), partial(assert_states_are_one_line, task)]
    return collected(checks)


def assert_no_claim_is_left(installation: Installation) -> None:
    def names() -> list[str]:
        seen = installation.timeline.all_latest("leases", SYSTEM)
        return [s.object["metadata"]["name"] for s in seen if s.object["metadata"]["name"].startswith("run-")]

    installation.timeline.until(
        lambda: not names(), evidence.RELEASED_WITHIN_S, lambda: f"no claims any more, but there are {names()}"
    )
    left = installation.kubectl("--namespace", SYSTEM, "get", "leases", "--output=name").split()
    assert not [name for name in left if "/run-" in name], f"claims are left: {left}"


def assert_no_lock_is_left(task: RunningTask) -> None:
    """One that was told as held has been taken away by now."""
    holder = task.state_lock_holder()
    assert not holder, f"the state of {task.workspace} is still locked by {holder}\n{task.story()}"


def assert_one_leader_each(installation: Installation) -> None:
    """No epoch of a Lease had two (invariant 8). Of one that is made anew it may be lower, until an agent says so."""
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    for lease in installation.timeline.history("leases", SYSTEM, OPERATOR):
        meta, holder = lease.object["metadata"], str(lease.object["spec"].get("holderIdentity") or "")
        if holder:
            holders[meta.get("uid", ""), meta.get("annotations", {}).get("terrahalt.dev/epoch", "")].add(holder)
    shared = {epoch: sorted(names) for epoch, names in holders.items() if len(names) > 1}
    assert not shared, f"epochs of several leaders: {shared}"


def assert_report_was_believed(task: RunningTask) -> None:
    """What its agent left in its termination message is what the status says (invariant 4)."""
    for pod in task.installation.timeline.history("pods", task.namespace, task.pod_name):
        for container in pod.status.get("containerStatuses", ()):
            told = _outcome_in(container.get("state", {}).get("terminated", {}).get("message", ""), task.run_id)
            assert told in ("", task.phase), f"its agent said {told}\n{task.story()}"


def _outcome_in(message: str, run_id: str) -> str:
    """Empty: none of this run. A run that has made a plan for an approval is not the end of its task."""
    try:
        report = json.loads(json.loads(message)["report"])
    except (ValueError, KeyError, TypeError):
        return ""
    result = report.get("result") or {}
    if report.get("run_id") != run_id or result.get("kept_plan"):
        return ""
    return str(result.get("outcome", ""))


def assert_states_are_one_line(task: RunningTask) -> None:
    """Each version follows the one before it, and was written while a run held the workspace (invariants 2 and 6)."""
    written = versions_of(task)
    for before, after in pairwise(written):
        is_next = after.serial > before.serial and before.state["lineage"] == after.state["lineage"]
        steps = f"{before.serial} and {after.serial} of {before.state['lineage']} and {after.state['lineage']}"
        assert is_next or before.state == after.state, f"serials that do not follow: {steps}\n{task.story()}"
    if task.installation.timeline.had_gap("leases", task.history[0].at):
        return
    claims = task.installation.timeline.history("leases", SYSTEM, task.claim_name)
    for each in written:
        last = [claim for claim in claims if claim.version < each.version][-1:]
        is_held = bool(last) and not last[0].is_deleted
        assert is_held, f"serial {each.serial} was written while no run held {task.workspace}\n{task.story()}"


def assert_state_has_it(life: Life) -> None:
    """What succeeded was saved."""
    task = life.task
    if life.planned.shape.kind != "counted" or task.phase != "Succeeded":
        return
    if task.installation.timeline.had_gap("secrets", task.history[0].at):
        return
    saved = any(each.has_whole(life.counter) for each in versions_of(task))
    assert saved, f"it succeeded, and no state of {task.workspace} ever had it\n{task.story()}"


def versions_of(task: RunningTask) -> list[Written]:
    name = f"tfstate-default-{task.workspace}-tf"
    seen = task.installation.timeline.history("secrets", task.namespace, name)
    # terraform makes the Secret first, and saves into it then.
    return [Written(s.version, _state_in(s)) for s in seen if not s.is_deleted and s.object.get("data")]


def _state_in(secret: Sighting) -> Json:
    state: Json = json.loads(gzip.decompress(base64.b64decode(secret.object["data"]["tfstate"])))
    return state
