"""The judge of what a round leaves behind finds what it has to. Needs no cluster."""

from __future__ import annotations

import base64
import gzip
import json

import pytest

from tests.e2e.installation import OPERATOR, SYSTEM
from tests.e2e.kubectl import Json
from tests.e2e.seen import OTHER_RUN, RUN, Seen
from tests.soak import remains
from tests.soak.plan import PlannedTask
from tests.soak.random_tasks import Shape
from tests.soak.troubles import Life

SECRET = "tfstate-default-network-tf"


def wrote(seen: Seen, at: float, serial: int, lineage: str = "a", words: str = "", **instance: str) -> Seen:
    made: list[Json] = [{"instances": [{"attributes": {"triggers_replace": words}, **instance}]}] if words else []
    text = json.dumps({"serial": serial, "lineage": lineage, "resources": made}).encode()
    return seen.object(
        at, "secrets", "ns", SECRET, {"data": {"tfstate": base64.b64encode(gzip.compress(text)).decode()}}
    )


def held() -> Seen:
    return Seen().status(0.1, "Applying").claim(0.2, "ADDED")


def test_serials_that_go_up_in_one_lineage_under_a_claim_are_well() -> None:
    seen = held().object(0.5, "secrets", "ns", SECRET, {"type": "Opaque"})
    seen = wrote(wrote(wrote(seen, 1, 0), 2, 1), 3, 3).claim(4, "DELETED")
    remains.assert_states_are_one_line(seen.task)
    assert [each.serial for each in remains.versions_of(seen.task)] == [0, 1, 3]


@pytest.mark.parametrize(("serial", "lineage"), [(1, "a"), (0, "a"), (2, "b")])
def test_a_state_that_does_not_follow_the_one_before_is_found(serial: int, lineage: str) -> None:
    seen = wrote(wrote(held(), 1, 1, words="first"), 2, serial, lineage, words="other")
    with pytest.raises(AssertionError, match="serials that do not follow"):
        remains.assert_states_are_one_line(seen.task)


def test_a_state_that_was_written_before_or_after_its_claim_is_found() -> None:
    early = wrote(Seen().status(0.1, "Applying"), 0.2, 1).claim(0.3, "ADDED")
    late = wrote(held().claim(4, "DELETED"), 5, 1)
    for seen in (early, late):
        with pytest.raises(AssertionError, match="while no run held"):
            remains.assert_states_are_one_line(seen.task)


def test_who_was_not_told_of_a_claim_does_not_say_that_there_was_none() -> None:
    seen = wrote(Seen().status(0.1, "Applying"), 0.2, 1)
    seen.told("gap", 9, resource="secrets", since=8)
    with pytest.raises(AssertionError, match="while no run held"):
        remains.assert_states_are_one_line(seen.task)
    seen.told("gap", 9, resource="leases", since=8)
    remains.assert_states_are_one_line(seen.task)


def test_what_succeeded_without_ever_being_saved_whole_is_found() -> None:
    def saved(phase: str = "Succeeded", **instance: str) -> None:
        seen = wrote(held(), 1, 1, words="its-counter", **instance).status(2, phase)
        remains.assert_state_has_it(Life(0, PlannedTask(Shape("counted", ""), 0, "p"), "its-counter", seen.task))

    saved()
    saved("Cancelled", status="tainted")
    with pytest.raises(AssertionError, match="no state of network ever had it"):
        saved(status="tainted")


def report(run: str, outcome: str, **more: object) -> str:
    return json.dumps({"report": json.dumps({"run_id": run, "result": {"outcome": outcome, **more}}), "hmac": ""})


def test_an_end_that_is_not_what_the_agent_said_is_found() -> None:
    def said(message: str) -> None:
        terminated = {"state": {"terminated": {"message": message}}}
        pod = {"spec": {}, "status": {"containerStatuses": [terminated]}}
        seen = Seen().status(1, "Cancelled").object(2, "pods", "ns", "agent", pod)
        remains.assert_report_was_believed(seen.task)

    said(report(RUN, "Cancelled"))
    for of_no_end in (
        report(OTHER_RUN, "Succeeded"),
        report(RUN, "Failed", kept_plan={"digest": "x"}),
        "",
        "{}",
        "cut",
    ):
        said(of_no_end)
    with pytest.raises(AssertionError, match="its agent said Succeeded"):
        said(report(RUN, "Succeeded"))


def test_an_epoch_that_two_had_is_found_and_a_lease_that_comes_back_is_none() -> None:
    def led(*terms: tuple[str, int, str]) -> None:
        seen = Seen()
        for at, (holder, epoch, uid) in enumerate(terms):
            meta: Json = {"namespace": SYSTEM, "name": OPERATOR, "resourceVersion": str(at), "uid": uid}
            meta["annotations"] = {"terrahalt.dev/epoch": str(epoch)}
            seen.object(at, "leases", SYSTEM, OPERATOR, {"metadata": meta, "spec": {"holderIdentity": holder}})
        remains.assert_one_leader_each(seen.task.installation)

    led(("one", 1, "a"), ("", 1, "a"), ("two", 2, "a"), ("two", 2, "a"), ("one", 3, "a"))
    led(("one", 1, "a"), ("two", 1, "b"))
    with pytest.raises(AssertionError, match="several leaders"):
        led(("one", 1, "a"), ("two", 1, "a"))


def test_a_claim_that_is_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.e2e.evidence.RELEASED_WITHIN_S", 0.0)
    seen = held()
    with pytest.raises(AssertionError, match="run-1"):
        remains.assert_no_claim_is_left(seen.task.installation)
