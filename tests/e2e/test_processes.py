"""What test processes do once between them. Needs no cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.e2e import processes


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """In a session of its own; two that use it at once stand for two processes."""
    monkeypatch.setattr(processes, "_record", lambda: tmp_path / "users")
    return []


def use(done: list[str]) -> contextlib.AbstractContextManager[None]:
    return processes.shared(lambda: done.append("put"), lambda: done.append("removed"))


def test_the_first_one_puts_it_there_and_the_last_one_takes_it_away(done: list[str]) -> None:
    with use(done):
        with use(done):
            assert done == ["put"]
        assert done == ["put"]
    assert done == ["put", "removed"]


def test_one_that_failed_to_put_it_there_leaves_that_to_the_next(done: list[str]) -> None:
    def fail() -> None:
        raise RuntimeError("the cluster is full")

    with pytest.raises(RuntimeError, match="full"), processes.shared(fail, lambda: done.append("removed")):
        pass
    with use(done):
        assert done == ["put"]


def test_what_disturbs_others_is_refused_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    act = processes.disturbing(lambda: "done")
    monkeypatch.setattr(processes, "COUNT", 1)
    assert act() == "done"
    monkeypatch.setattr(processes, "COUNT", 2)
    with pytest.raises(AssertionError, match=r"pytest\.mark\.alone"):
        act()
