"""What was last seen: never older than seen before, and each claim found by its name, task and pod."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from terrahalt_operator.store import Claims, Groups, Shelf
from tests.operator_core.builders import a_claim, a_task


def an_object(version: int, uid: str = "u") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


@given(st.lists(st.integers(1, 99), min_size=1))
def test_the_highest_version_stays_in_whatever_order_they_come(versions: list[int]) -> None:
    shelf: Shelf[int] = Shelf()
    news = [version for version in versions if shelf.put(an_object(version), version)]
    assert shelf.values == {"u": max(versions)}
    assert news == sorted(set(news))


def test_versions_are_compared_as_numbers() -> None:
    shelf: Shelf[str] = Shelf()
    assert shelf.put(an_object(9), "nine")
    assert shelf.put(an_object(10), "ten")
    assert not shelf.put(an_object(10), "the same again")


def test_a_removed_object_is_gone_and_removing_it_twice_is_nothing() -> None:
    shelf: Shelf[str] = Shelf()
    shelf.put(an_object(1), "one")
    assert shelf.remove("u") == "one"
    assert shelf.remove("u") is None
    assert (shelf.raw("u"), shelf.values) == (None, {})


def test_what_was_out_of_sight_comes_back_by_what_was_said_of_it_later_and_by_nothing_older() -> None:
    shelf: Shelf[str] = Shelf()
    shelf.put(an_object(1), "labelled")
    assert shelf.remove("u", 3) == "labelled"
    assert shelf.is_gone("u")
    assert not shelf.put(an_object(3), "late")
    assert shelf.put(an_object(4), "labelled again")
    assert not shelf.is_gone("u")
    assert shelf.remove("u", 3) is None
    assert shelf.values == {"u": "labelled again"}


def test_what_nobody_found_does_not_come_back_at_all() -> None:
    shelf: Shelf[str] = Shelf()
    shelf.remove("u")
    assert not shelf.put(an_object(10**9), "late")


def test_only_what_is_no_newer_than_the_list_is_missed_in_it() -> None:
    shelf: Shelf[str] = Shelf()
    for version, uid in ((5, "old"), (9, "made since"), (4, "there")):
        shelf.put(an_object(version, uid), uid)
    assert shelf.gone(["there"], 8) == ["old"]


def test_of_an_object_only_what_changes_need_and_where_it_is_asked_for_status_are_kept_beside_its_value() -> None:
    obj = an_object(1) | {"spec": {"source": "a megabyte"}, "status": {"phase": "Queued"}}
    obj["metadata"] |= {"managedFields": ["many"], "annotations": {"note": "long"}}
    for shelf, kept in (
        (Shelf[str](), an_object(1)),
        (Shelf[str](with_status=True), an_object(1) | {"status": obj["status"]}),
    ):
        shelf.put(obj, "x")
        assert shelf.raw("u") == kept
    assert {"managedFields", "annotations"} <= set(obj["metadata"])


def test_a_group_holds_what_was_noted_last_and_is_gone_when_it_is_empty() -> None:
    groups: Groups[str, int] = Groups()
    groups.note("a", "one", None)
    for key, uid, value in (("a", "one", 1), ("a", "two", 2), ("b", "one", 1), ("a", "one", 3), ("b", "one", None)):
        groups.note(key, uid, value)
    assert groups == {"a": {"one": 3, "two": 2}}


def test_a_claim_is_found_by_its_name_its_task_and_its_pod() -> None:
    claims, claim = Claims(), a_claim()
    claims.put(claim)
    assert (claims.by_name[claim.name], claims.by_task[claim.task_uid], claims.by_pod[claim.pod_uid]) == (claim,) * 3
    assert claims.remove(claim.name) == claim
    assert (claims.by_name, claims.by_task, claims.by_pod) == ({}, {}, {})
    assert claims.remove(claim.name) is None


def test_the_next_claim_of_a_workspace_takes_the_place_of_the_last() -> None:
    claims = Claims()
    claims.put(a_claim())
    following = a_claim(a_task(uid="next", name="network-2"), pod_uid="other-pod", run_id="02RUN")
    claims.put(following)
    assert claims.by_task == {"next": following}
    assert claims.by_pod == {"other-pod": following}


def test_a_claim_of_the_same_agent_that_was_there_before_is_found_by_it_again() -> None:
    claims = Claims()
    first, later = a_claim(a_task(workspace="a", uid="first")), a_claim(a_task(workspace="b", uid="later"))
    claims.put(first)
    claims.put(later)
    claims.release(later)
    assert claims.by_pod == {first.pod_uid: first}


def test_removing_one_claim_leaves_another_of_the_same_pod() -> None:
    """A late answer may bring back a claim that is gone; letting it go must not lose the one that is."""
    claims = Claims()
    stale, live = a_claim(a_task(workspace="a", uid="old")), a_claim(a_task(workspace="b", uid="new"))
    claims.put(stale)
    claims.put(live)
    claims.remove(stale.name)
    assert claims.by_pod == {live.pod_uid: live}
    assert claims.by_task == {"new": live}


def test_a_claim_is_released_also_where_a_list_has_found_meanwhile_that_its_lease_is_gone() -> None:
    claims, claim = Claims(), a_claim(resource_version="24")
    claims.put(claim)
    claims.remove(claim.name)
    claims.put(replace(claim, resource_version=""))
    claims.release(claim)
    assert (claims.by_name, claims.by_task, claims.by_pod) == ({}, {}, {})
    another = replace(claim, run_id="another", resource_version="25")
    claims.put(another)
    claims.release(claim)
    assert claims.by_name == {claim.name: another}


def test_a_run_is_known_to_be_released_where_its_lease_was_and_where_it_was_only_forgotten_it_is_not() -> None:
    claims, claim = Claims(), a_claim(resource_version="24")
    claims.put(claim)
    assert not claims.is_released(claim.run_id)
    claims.release(replace(claim, resource_version=""))
    assert not claims.is_released(claim.run_id), "of its Lease nothing is known"
    claims.put(claim)
    claims.release(claim)
    assert claims.is_released(claim.run_id)
    assert not claims.is_released("another")
