"""What the bench says of what it saw, and writes into the docs: by figures that are given to it. Needs no cluster."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.bench import bare, cost, dots, hand_over, machine, on_node, start, throughput, written
from tests.bench.__main__ import CLUSTER_PARTS
from tests.bench.__main__ import main as bench
from tests.bench.figures import Part
from tests.bench.kubernetes_api import Json
from tests.bench.limits import LeastRatio, Limit, judge
from tests.bench.watched import first_init, init_seen
from tests.e2e.node.watch_node import BARE_JOB
from tests.e2e.seen import OTHER_RUN, RUN, T0, Seen
from tests.e2e.timeline import Sighting

DOCS = Path(__file__).parents[2] / "docs"
POD = "pod-1"
SVG = "{http://www.w3.org/2000/svg}"


def test_a_page_that_is_not_there_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench(["--only", "floor", "--write", str(tmp_path / "page.md")])
    assert "page.md does not exist; results go into a page, such as docs/benchmarks.md" in capsys.readouterr().err


def a_part(agent_ms: list[float], job_ms: list[float], rounds: int = 2) -> Part:
    part = Part("start", "for a test")
    part.compare(start.RATIO, of=part.add(start.JOB, "ms", job_ms), to=part.add(start.AGENT, "ms", agent_ms))
    part.add(start.SENT, "ms", [ms + 2 for ms in agent_ms])
    judge(part, rounds, start.LIMITS, start.LEAST, also_counted=[start.JOB, start.AGENT])
    return part


def what_was_found() -> dict[str, Any]:
    return {
        "command": "python -m tests.bench --starts 2",
        "at": "2027-01-15T08:00:00+00:00",
        "machine": machine.facts(),
        "load_before": 0.5,
        "cluster": {"kubernetes": "v1.34.4", "runtime": "containerd://2.1.4", "nodes": ["a", "b"]},
    }


def test_ten_times_sooner_is_enough_and_less_is_not() -> None:
    enough = a_part([20.0, 60.0], [200.0, 900.0])
    assert enough.missed == []
    assert enough.met == [
        "bare Job : warm agent has to be at least 10 x, it was 10",
        f"{start.SENT} has to be at most 30 ms at p50, it was 22",
    ]
    less = a_part([20.0, 60.0], [199.0, 900.0])
    assert less.missed == ["bare Job : warm agent has to be at least 10 x, it was 9.95"]
    assert "MISSED bare Job" in less.as_text()
    assert f"met    {start.SENT}" in less.as_text()


def test_a_limit_is_for_the_percentile_that_it_names() -> None:
    part = Part("a part", "for a test")
    part.add("cancel", "ms", [1.0] * 98 + [50.0, 70.0])
    judge(part, 100, [Limit("cancel", 50, 1), Limit("cancel", 99, 50), Limit("cancel", 100, 69)])
    assert part.met == [
        "cancel has to be at most 1 ms at p50, it was 1",
        "cancel has to be at most 50 ms at p99, it was 50",
    ]
    assert part.missed == ["cancel has to be at most 69 ms each time, it was 70"]


def test_rounds_that_are_missing_are_no_success() -> None:
    (no_ratio, no_start, fewer) = a_part([], []).missed
    assert no_ratio.endswith("nothing was measured")
    assert no_start.endswith("nothing was measured")
    assert fewer == f"fewer than 2 samples: {start.JOB}, {start.AGENT}, {start.SENT}"
    assert a_part([20.0, 25.0], [900.0]).missed == [f"fewer than 2 samples: {start.JOB}"]
    judge(unmeasured := Part("a part", "for a test"), 1, [], [LeastRatio("a : b", 2)])
    assert unmeasured.missed == ["a : b has to be at least 2 x, nothing was measured"]


async def test_init_is_seen_when_the_command_is_terraforms_and_not_when_its_process_began() -> None:
    seen = Seen()
    about = {"pid": 5, "ticks": 7, "pod": POD, "run": "", "parent": 1}
    seen.told("began", 1.0, started=T0 + 1, command=["runc", "init"], **about)
    assert init_seen(seen.timeline, POD) is None
    with pytest.raises(TimeoutError, match="terraform init in pod pod-1"):
        await first_init(seen.timeline, POD, 0.01)
    seen.told("became", 1.2, started=T0 + 1, command=["terraform", "init", "-input=false"], **about)
    seen.told("became", 1.3, started=T0 + 1, command=["terraform", "init", "-input=false"], **{**about, "parent": 2})
    seen.process(6, 1.1, 2.0, "/usr/local/bin/terraform init", pod="another-pod")
    seen.process(7, 1.1, 2.0, "terraform plan", pod=POD)
    assert await first_init(seen.timeline, POD, 1.0) == T0 + 1.2
    assert init_seen(seen.timeline, "another-pod") == T0 + 1.1


def test_a_child_that_an_agent_has_just_forked_is_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ["python3", "-m", "terrahalt_agent"]
    processes = {1: (0, ["init"]), 5: (1, agent), 6: (5, agent), 7: (5, ["terraform", "apply"]), 8: (1, agent)}
    monkeypatch.setattr(on_node, "command_line", lambda pid: processes[pid][1])
    monkeypatch.setattr(on_node, "parent", lambda pid: processes[pid][0])
    assert on_node.agents(list(processes)) == [5, 8]


def test_the_bare_job_is_terraform_init_of_a_config_map_that_the_watcher_looks_at() -> None:
    resources = {"requests": {"cpu": "100m"}}
    template = bare.a_job("job", "agent:1", "node-1", "source", resources)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"] == {"app.kubernetes.io/name": BARE_JOB}
    assert container["command"][:2] == ["terraform", "init"]
    assert (container["image"], container["resources"]) == ("agent:1", resources)
    assert template["spec"]["volumes"] == [{"name": "source", "configMap": {"name": "source"}}]
    assert container["volumeMounts"][0]["mountPath"] == container["workingDir"]


def test_a_section_has_every_row_what_was_met_or_missed_and_where_it_was_measured() -> None:
    part = a_part([20.0, 60.0], [1000.0, 1200.4])
    part.add("one sample", "", [7.0])
    part.notes.append("so it was")
    text = written.section(part, what_was_found(), "start.svg")
    assert f"| {start.AGENT} | 2 | 20 ms | 60 ms | 60 ms | 60 ms |" in text
    assert f"| {start.JOB} | 2 | 1,000 ms | 1,200 ms | 1,200 ms | 1,200 ms |" in text
    assert "| one sample | 1 | 7 |  |  |  |" in text
    assert f"* {start.RATIO}: 50 times" in text
    assert "* Met: bare Job : warm agent has to be at least 10 x, it was 50" in text
    assert "](start.svg)" in text
    assert "* So it was" in text
    assert "Measured 2027-01-15 by `python -m tests.bench --starts 2` on " in text
    assert machine.facts()["kernel"] in text
    assert "Kubernetes v1.34.4, containerd://2.1.4, nodes: 2" in text
    assert "Missed" not in text
    assert "**Missed: bare Job" in written.section(a_part([20.0, 60.0], [100.0, 100.0]), what_was_found())


def test_what_a_part_has_shown_gets_into_its_place_and_its_picture_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((DOCS / "benchmarks.md").read_text())
    written.write(page, a_part([20.0, 60.0], [1000.0, 1200.0]), what_was_found(), start.DRAWN)
    before, _, after = page.read_text().partition("<!-- start -->")
    assert "](bench-start.svg)" in after.partition("<!-- /start -->")[0]
    assert before == (DOCS / "benchmarks.md").read_text().partition("<!-- start -->")[0]
    root = ET.parse(tmp_path / "bench-start.svg").getroot()
    assert len(list(root.iter(f"{SVG}circle"))) == 4
    written.write(page, Part("cost", "for a test"), what_was_found(), ())
    assert [path.name for path in tmp_path.glob("*.svg")] == ["bench-start.svg"]


def test_a_dot_is_further_to_the_right_the_longer_it_took_and_in_the_picture_whatever_it_took() -> None:
    part = Part("a part", "for a test")
    rows = [part.add("quick", "ms", [-2.0, 0.3, 8.0]), part.add("none", "ms", []), part.add("slow", "ms", [8.0, 700.0])]
    root = ET.fromstring(dots.svg("so", rows))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert all(0 < x < width and 0 < y < height for x, y in points)
    late, quick, eight, other_eight, slow = points
    assert late[0] < quick[0] < eight[0] == other_eight[0] < slow[0]
    assert late[1] == quick[1] == eight[1] < other_eight[1] == slow[1]
    assert [text.text for text in root.iter(f"{SVG}text") if "(n " in (text.text or "")] == [
        "quick (n 3, p50 0.3 ms)",
        "slow (n 2, p50 8 ms)",
    ]
    medians = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.get("class") == "median"]
    assert medians[0].startswith(f"M{quick[0]} ")
    ET.fromstring(dots.svg("nothing", []))


def test_a_run_has_gone_with_the_last_of_its_processes_and_the_next_begins_with_init() -> None:
    seen = Seen()
    status = {"runID": RUN, "agent": {"podUID": POD}, "startedAt": "2027-01-15T08:00:00Z"}
    assert hand_over.all_gone(seen.timeline, status) is None
    assert hand_over.at_work(seen.timeline, RUN) is None
    apply = {"pid": 5, "ticks": 7}
    seen.told("began", 1.0, started=T0 + 1, command=["terraform", "apply"], pod=POD, run=RUN, parent=1, **apply)
    assert hand_over.at_work(seen.timeline, RUN) is None, "what it runs is not there yet"
    sleep = {"pid": 6, "ticks": 7}
    seen.told("began", 1.1, started=T0 + 1.1, command=["sleep", "300"], pod=POD, run=RUN, parent=5, **sleep)
    assert hand_over.at_work(seen.timeline, RUN) is seen.timeline.processes[0]
    seen.told("ended", 2.0, seen=T0 + 2, **apply)
    assert hand_over.all_gone(seen.timeline, status) is None
    seen.told("ended", 2.2, seen=T0 + 2.195, **sleep)
    seen.process(8, 2.3, 2.4, "terraform init", run=OTHER_RUN, pod=POD)
    seen.process(9, 2.5, 2.6, "terraform plan", run=OTHER_RUN, pod=POD)
    assert hand_over.all_gone(seen.timeline, status) == T0 + 2.2
    assert hand_over.init_of(seen.timeline, OTHER_RUN) == T0 + 2.3
    assert hand_over.init_of(seen.timeline, RUN) is None


def test_an_end_makes_room_for_the_agent_that_follows() -> None:
    def pod(name: str, *, there: float, ready: float, given: float, ended: float | None = None) -> list[Sighting]:
        seen = Seen()
        condition = {"type": "Ready", "status": "True"}
        label = {"terrahalt.dev/last-task": "task"}
        for at, status, labels in (
            (there, {"phase": "Pending"}, {}),
            (ready, {"phase": "Running", "conditions": [condition]}, {}),
            (given, {"phase": "Running", "conditions": [condition]}, label),
            (ended, {"phase": "Succeeded"}, label),
        ):
            if at is not None:
                seen.object(at, "pods", "ns", name, {"status": status}, labels=labels)
        return seen.timeline.history("pods", "ns", name)

    first = pod("a", there=0, ready=1, given=2, ended=4)
    second = pod("b", there=0.1, ready=1, given=2.1, ended=6)
    third = pod("c", there=4.5, ready=6, given=6.5)
    fourth = pod("d", there=6.25, ready=8, given=9)
    assert throughput.replacements([first, second]) == []
    assert throughput.replacements([fourth, second, third, first]) == [(0.5, 2.0, 2.5), (0.25, 2.0, 3.0)]


def test_requests_are_those_that_the_api_server_counts_for_the_operator_and_no_watch_or_lease_of_the_leader() -> None:
    lines = """# HELP apiserver_flowcontrol_dispatched_requests_total so
apiserver_flowcontrol_dispatched_requests_total{flow_schema="service-accounts",priority_level="workload-low"} 500
apiserver_flowcontrol_dispatched_requests_total{flow_schema="terrahalt-bench-tasks",priority_level="workload-low"} 4
apiserver_flowcontrol_dispatched_requests_total{flow_schema="terrahalt-bench-token-reviews",priority_level="x"} 1
apiserver_flowcontrol_dispatched_requests_total{flow_schema="terrahalt-bench-leader",priority_level="x"} 70
apiserver_flowcontrol_dispatched_requests_total{flow_schema="terrahalt-bench-watches",priority_level="x"} 9
apiserver_flowcontrol_rejected_requests_total{flow_schema="terrahalt-bench-tasks",priority_level="x"} 3"""
    found = cost.requests_of(lines.splitlines())
    assert (found["tasks"], found["token reviews"], found["leader"], found["watches"]) == (4, 1, 70, 9)
    assert cost.counted(found) == 5


def test_bytes_are_those_of_all_devices_but_the_loopback() -> None:
    text = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 9000 1 0 0 0 0 0 0 9000 1 0 0 0 0 0 0
  eth0: 1000 5 0 0 0 0 0 0 20 4 0 0 0 0 0 0
  eth1:1 5 0 0 0 0 0 0 2 4 0 0 0 0 0 0
"""
    assert cost.network_of(text) == (22, 1001)


def test_a_status_write_is_a_version_with_another_status_than_the_one_before_but_for_the_default() -> None:
    queued, done = {"phase": "Queued"}, {"phase": "Succeeded"}
    default = {"status": {"observedGeneration": -1}}
    versions: list[Json] = [default, {**default, "metadata": {"finalizers": ["x"]}}, {"status": queued}]
    assert cost.status_writes(versions) == ["Queued"]
    more: list[Json] = [{"status": queued, "spec": {}}, {"status": done}, {"status": queued}]
    assert cost.status_writes([*versions, *more]) == ["Queued", "Succeeded", "Queued"]
    assert cost.status_writes([]) == []


def test_what_goes_over_without_a_task_is_not_the_tasks_price_and_what_is_asked_meanwhile_is() -> None:
    part = Part("cost", "for a test")
    idle = cost.Sums(20.0, {"watches": 2, "leader": 20, "pods": 1}, sent=20 * 1024, read=40 * 1024)
    spent = cost.Sums(10.0, {"watches": 1, "leader": 10, "pods": 4, "tasks": 5}, sent=14 * 1024, read=22 * 1024)
    cost.add_rows(part, [spent], [4], idle)
    rows = {row.what: row.samples for row in part.rows}
    assert (rows[cost.REQUESTS], rows["of it, pods"], rows["of it, tasks"]) == ((9,), (4,), (5,))
    assert "of it, events" not in rows
    assert (rows[cost.SENT], rows[cost.READ]) == ((4.0,), (2.0,))
    assert rows["without a task, not counted: leader a minute"] == (60,)
    assert rows["without a task: API requests a minute"] == (3,)
    assert part.notes == ["without a task, in 20 s: pods 1"]


def test_what_is_written_replaces_what_was_there_and_nothing_around_it() -> None:
    before = "above\n<!-- x -->\nold\nolder\n<!-- /x -->\nbelow\n"
    after = written.replaced(before, "x", "new \\1\n")
    assert after == "above\n<!-- x -->\nnew \\1\n<!-- /x -->\nbelow\n"
    assert written.replaced(after, "x", "new \\1") == after
    with pytest.raises(ValueError, match="no place for y"):
        written.replaced(before, "y", "new")


def test_the_docs_have_a_place_for_each_part_that_is_written() -> None:
    for name in CLUSTER_PARTS:
        assert f"| {name} |" in written.replaced((DOCS / "benchmarks.md").read_text(), name, f"| {name} |")
