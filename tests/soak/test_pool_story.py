"""The judge of a pool, and its chart, by histories that are given to them. Needs no cluster."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.e2e.seen import OTHER_RUN, RUN, T0, Seen
from tests.e2e.timeline import Sighting
from tests.soak.pool_chart import Drawn, svg
from tests.soak.pool_story import (
    BUSY,
    GONE,
    IDLE,
    STARTING,
    Count,
    counts,
    runs_of,
    settled_at,
    state_of,
    taken_with_a_run,
    used_otherwise_than_once,
    waits,
)
from tests.soak.test_a_pool_of_twenty import HELD, MARK, MAX_AGENTS, MIN_IDLE, SCALED_UP, write_chart

DOCS = Path(__file__).parents[2] / "docs"
READY: Any = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
ENDED: Any = {**READY, "containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}


def a_pod(
    at: float, status: Any = READY, *, run: str = "", had: bool = False, uid: str = RUN, going: bool = False
) -> Sighting:
    """Its version is the time in tenths of a second."""
    labels = {"terrahalt.dev/run": run} if run else {}
    labels |= {"terrahalt.dev/last-task": "x"} if run or had else {}
    meta: Any = {"uid": uid, "labels": labels, "resourceVersion": str(round(at * 10))}
    meta |= {"deletionTimestamp": "2027-01-15T08:00:00Z"} if going else {}
    return Sighting(at, "MODIFIED", {"metadata": meta, "status": status})


WHOLE_LIFE = [
    a_pod(1, {"phase": "Pending"}),
    a_pod(2),
    a_pod(3, run=RUN),
    a_pod(4, had=True),
    a_pod(5, ENDED, had=True),
    a_pod(6, ENDED, had=True, going=True),
]


def test_an_agent_starts_waits_is_busy_until_its_container_has_ended_and_is_gone() -> None:
    assert [state_of(pod) for pod in WHOLE_LIFE] == [STARTING, IDLE, BUSY, BUSY, GONE, GONE]
    assert state_of(a_pod(1, going=True)) == GONE
    assert state_of(a_pod(1, {"phase": "Failed"})) == GONE
    assert state_of(Sighting(1, "DELETED", a_pod(1).object)) == GONE


def test_agents_are_counted_whenever_one_changes_whatever_the_order_of_the_histories() -> None:
    other = [a_pod(2.5, {"phase": "Pending"}), a_pod(4.5)]
    expected = [
        Count(1, 1, 0, 0),
        Count(2, 0, 1, 0),
        Count(2.5, 1, 1, 0),
        Count(3, 1, 0, 1),
        Count(4.5, 0, 1, 1),
        Count(5, 0, 1, 0),
    ]
    assert counts([WHOLE_LIFE, other]) == counts([other, WHOLE_LIFE]) == expected
    assert [(count.agents, count.without_a_run) for count in expected[3:5]] == [(2, 1), (2, 1)]


def test_a_pool_has_settled_when_it_holds_without_a_break_and_not_before_it_was_asked_to() -> None:
    def has_two(count: Count) -> bool:
        return count.idle == 2

    found = [Count(1, 0, 2, 0), Count(2, 0, 3, 0), Count(5, 0, 2, 1), Count(7, 0, 2, 0)]
    assert settled_at(found, 3, has_two) == 5
    assert settled_at(found, 6, has_two) == 6
    assert settled_at(found, 8, has_two) == 8
    assert settled_at([*found, Count(9, 0, 1, 0)], 3, has_two) is None
    assert settled_at([], 3, has_two) is None


def test_a_pod_that_goes_before_the_end_of_its_run_is_on_record_is_found() -> None:
    assert taken_with_a_run({"agent": WHOLE_LIFE}, {RUN: 59}) == []
    assert taken_with_a_run({"agent": WHOLE_LIFE}, {RUN: 61}) == [
        f"agent was deleted before the end of its run {RUN} was on record"
    ]
    assert taken_with_a_run({"agent": WHOLE_LIFE}, {}) == [
        f"agent was deleted with run {RUN}, which has no end on record"
    ]
    vanished = [a_pod(3, run=RUN), Sighting(4, "VANISHED", a_pod(4, had=True).object)]
    assert taken_with_a_run({"agent": vanished}, {RUN: 41})
    assert taken_with_a_run({"idle": [a_pod(2), a_pod(3, going=True)], "left": [a_pod(3, run=OTHER_RUN)]}, {}) == []


def test_an_agent_that_was_used_twice_or_by_nobody_is_found_by_labels_and_by_processes() -> None:
    def processes(*runs: str) -> Any:
        seen = Seen()
        for number, run in enumerate(runs):
            seen.process(number, 1, 2, "terraform init", run=run, pod=RUN)
        return seen.process(99, 1, 2, "sleep 2", run="", pod=RUN).timeline.processes

    once, twice = {"agent": WHOLE_LIFE}, {"agent": [*WHOLE_LIFE, a_pod(7, run=OTHER_RUN)]}
    given = {RUN: RUN}
    assert used_otherwise_than_once(once, processes(RUN, RUN), given) == []
    assert used_otherwise_than_once(once, processes(RUN, OTHER_RUN), given)
    assert used_otherwise_than_once(once, processes(), given)
    assert used_otherwise_than_once(twice, processes(RUN), given)
    assert used_otherwise_than_once(twice, processes(RUN, OTHER_RUN), {RUN: RUN, OTHER_RUN: RUN})
    assert used_otherwise_than_once({"idle": [a_pod(1)]}, [], {}) == []
    assert used_otherwise_than_once({"idle": [a_pod(1)]}, processes(RUN), {})
    assert used_otherwise_than_once({}, [], given) == [f"nobody has seen the pod {RUN}"]
    assert runs_of(twice["agent"]) == {RUN, OTHER_RUN}


def test_a_task_has_waited_from_when_it_was_seen_until_it_has_a_run() -> None:
    seen = Seen()
    for name, given in (("task", 7), ("other", 3)):
        seen.status(1, "Queued", run="", name=name).status(given, "Assigned", name=name)
        seen.status(9, "Succeeded", name=name)
    assert waits([seen.task, seen.other]) == [(T0 + 3, 2), (T0 + 7, 6)]


def test_the_chart_is_a_picture_with_each_wait_and_all_agents_inside_of_it() -> None:
    drawn = Drawn("so", 20, agents=[(0, 2, 0), (1.5, 20, 18), (60, 2, 0)], waits=[(0.5, 0.5), (50, 49.5)])
    root = ET.fromstring(svg(drawn))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    space = "{http://www.w3.org/2000/svg}"
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{space}circle")]
    assert len(points) == 2
    assert all(0 < x < width and 0 < y < height for x, y in points)
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1], "who waits longer is higher"
    (agents,) = (path.attrib["d"] for path in root.iter(f"{space}path") if path.get("class") == "agents")
    assert agents == "M56.0 192.0 H77.2 V48.0 H904.0 V192.0 H904.0"
    (busy,) = (path.attrib["d"] for path in root.iter(f"{space}path") if path.get("class") == "busy")
    assert busy.endswith(" Z")
    ET.fromstring(svg(Drawn("nothing", 20, agents=[], waits=[])))


def test_the_chart_its_figures_and_where_they_are_from_get_into_the_docs(tmp_path: Path) -> None:
    (tmp_path / "pools.md").write_text((DOCS / "pools.md").read_text())
    write_chart(tmp_path, counts([WHOLE_LIFE]), [(3.0, 1.5), (4.0, 2.5)], 2)
    page = (tmp_path / "pools.md").read_text()
    assert f"]({MARK}.svg)" in page
    assert "2 values: min 1.500, median 1.500" in page
    assert machine.facts()["kernel"] in page
    data = json.loads((tmp_path / f"{MARK}.json").read_text())
    assert data["agents"] == [[0.0, 1, 0], [0.5, 1, 0], [1.5, 1, 1], [3.5, 0, 0]]
    assert data["waits"] == [[1.5, 1.5], [2.5, 2.5]]
    assert len(list(ET.parse(tmp_path / f"{MARK}.svg").iter("{http://www.w3.org/2000/svg}circle"))) == 2


def test_what_is_scaled_up_fits_beside_what_runs() -> None:
    assert MIN_IDLE < SCALED_UP <= MAX_AGENTS - HELD
