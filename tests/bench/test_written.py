"""What the bench says of starts, and writes into the docs: by figures that are given to it. Needs no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import bare, machine, start, written
from tests.bench.figures import Part
from tests.bench.watched import first_init, init_seen
from tests.e2e.node.watch_node import BARE_JOB
from tests.e2e.seen import T0, Seen

DOCS = Path(__file__).parents[2] / "docs"
POD = "pod-1"


def a_part(agent_ms: list[float], job_ms: list[float], rounds: int = 2) -> Part:
    part = Part("start", "for a test")
    part.compare(start.RATIO, of=part.add(start.JOB, "ms", job_ms), to=part.add(start.AGENT, "ms", agent_ms))
    start.judge(part, rounds)
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
    assert a_part([50.0, 60.0], [500.0, 900.0]).missed == []
    assert a_part([50.0, 60.0], [499.0, 900.0]).missed == ["bare Job : warm agent has to be at least 10 x, it was 9.98"]
    assert "MISSED bare Job" in a_part([50.0, 60.0], [499.0, 900.0]).as_text()


def test_rounds_that_are_missing_are_no_success() -> None:
    (nothing, fewer) = a_part([], []).missed
    assert nothing.endswith("nothing was measured")
    assert fewer == f"fewer than 2 samples: {start.JOB}, {start.AGENT}"
    assert a_part([50.0, 60.0], [900.0]).missed == [f"fewer than 2 samples: {start.JOB}"]


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


def test_the_bare_job_is_terraform_init_of_a_config_map_that_the_watcher_looks_at() -> None:
    resources = {"requests": {"cpu": "100m"}}
    template = bare.a_job("job", "agent:1", "node-1", "source", resources)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"] == {"app.kubernetes.io/name": BARE_JOB}
    assert container["command"][:2] == ["terraform", "init"]
    assert (container["image"], container["resources"]) == ("agent:1", resources)
    assert template["spec"]["volumes"] == [{"name": "source", "configMap": {"name": "source"}}]
    assert container["volumeMounts"][0]["mountPath"] == container["workingDir"]


def test_the_table_has_both_their_ratio_and_where_it_was_measured() -> None:
    text = written.start_table(a_part([50.0, 60.0], [1000.0, 1200.4]), what_was_found())
    assert "| a task, warm agent | 2 | 50 ms | 60 ms | 60 ms |" in text
    assert "| a bare Job | 2 | 1000 ms | 1200 ms | 1200 ms |" in text
    assert "20 times sooner" in text
    assert "Measured 2027-01-15 by `python -m tests.bench --starts 2` on " in text
    assert machine.facts()["kernel"] in text
    assert "Kubernetes v1.34.4, containerd://2.1.4, nodes: 2" in text
    assert "Missed" not in text
    assert "**Missed: bare Job" in written.start_table(a_part([50.0, 60.0], [100.0, 100.0]), what_was_found())


def test_what_is_written_replaces_what_was_there_and_nothing_around_it() -> None:
    before = "above\n<!-- x -->\nold\nolder\n<!-- /x -->\nbelow\n"
    after = written.replaced(before, "x", "new \\1\n")
    assert after == "above\n<!-- x -->\nnew \\1\n<!-- /x -->\nbelow\n"
    assert written.replaced(after, "x", "new \\1") == after
    with pytest.raises(ValueError, match="no place for y"):
        written.replaced(before, "y", "new")


def test_the_docs_have_a_place_for_it() -> None:
    assert "| a bare Job |" in written.replaced((DOCS / "benchmarks.md").read_text(), "start", "| a bare Job |")
