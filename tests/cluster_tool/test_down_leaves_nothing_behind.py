"""`up` and `down` on the real machine, compared before and after; with nodes in every state that they can be left in.

It wants the machine to itself, so it skips while a cluster of the tool runs: `make cluster-down` first,
then `pytest tests/cluster_tool/test_down_leaves_nothing_behind.py`. About 50 s when the cache is warm.
"""

from __future__ import annotations

import pytest

from tests.cluster import cache, down, given, host_state, pause, stop, up

pytestmark = pytest.mark.cluster


def test_the_machine_after_down_is_as_it_was_before_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(given.VARIABLE, raising=False)
    if list((cache.root() / "clusters").glob("*/cluster.json")):
        pytest.skip("a cluster runs: make cluster-down, then run this test alone")
    before = host_state.snapshot()

    cluster = up("leaves-nothing", workers=2)
    frozen, cut_off = cluster.workers
    pause(frozen, "leaves-nothing")
    stop(cut_off, "leaves-nothing")
    during = host_state.snapshot()
    down("leaves-nothing")

    assert cluster.nodes == ("leaves-nothing-control-plane", "leaves-nothing-worker", "leaves-nothing-worker2")
    # What is compared would be worth nothing if a running cluster didn't show in it.
    assert host_state.differences(before, during)
    assert host_state.differences(before, host_state.snapshot()) == []
    assert not (cache.root() / "clusters" / "leaves-nothing").exists()
