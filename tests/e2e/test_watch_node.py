"""What the node's watcher tells when its watch of the API server breaks. Needs no cluster."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import time
from typing import Any

import pytest

from tests.e2e.node import watch_node

RUN_ID = "01M8FEGV697YX3NVVJF8GEEMAR"


class Broken(OSError):
    """The API server went away."""


def lease(name: str, uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": str(version)}}


def told_after(monkeypatch: pytest.MonkeyPatch, *lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a watch that can list so often, and breaks after each list."""
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    monkeypatch.setattr(watch_node, "_out", told)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    left = list(lists)

    class Watch(watch_node.ApiWatch):
        def _get(self, query: str) -> Any:
            if query:
                raise Broken
            if not left:
                raise SystemExit
            return io.StringIO(json.dumps({"metadata": {"resourceVersion": "1"}, "items": left.pop(0)}))

    with pytest.raises(SystemExit):
        Watch("leases", watch_node.Sampler(), tells=True).run()
    lines = []
    while not told.empty():
        lines.append(told.get())
    return [line for line in lines if line["kind"] != "trouble"]


def test_what_went_meanwhile_is_told_before_what_has_its_name_now_and_then_the_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = told_after(
        monkeypatch, [lease("run-1", "a", 5), lease("run-2", "b", 6)], [lease("run-1", "c", 9), lease("run-2", "b", 6)]
    )
    seen = [(line["event"], line["object"]["metadata"]["uid"]) for line in lines if line["kind"] == "object"]
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("VANISHED", "a"), ("ADDED", "c")]
    assert [line["kind"] for line in lines][-1] == "gap"


def test_a_watch_that_has_just_begun_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told_after(monkeypatch, [lease("run-1", "a", 5)])
    assert [line["kind"] for line in lines] == ["object"]


@pytest.mark.parametrize(("is_bare", "inside"), [(True, [1, 2]), (False, [2])])
def test_of_a_bare_job_the_first_process_is_told_and_of_an_agent_only_what_it_runs(
    monkeypatch: pytest.MonkeyPatch, is_bare: bool, inside: list[int]
) -> None:
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    monkeypatch.setattr(watch_node, "_out", told)
    monkeypatch.setattr(watch_node, "pod_of", lambda _: "pod")
    # 100 is the runtime's own, on its way into the container.
    monkeypatch.setattr(watch_node, "number_inside", lambda pid: int(pid) - 100)
    monkeypatch.setattr(
        watch_node, "describe", lambda pid: {"pid": int(pid), "ticks": 1, "alive": True, "pod": "pod", "command": []}
    )
    sampler = watch_node.Sampler()
    name = watch_node.BARE_JOB if is_bare else "terrahalt-agent"
    pod = {"metadata": {"name": "x", "uid": "pod", "resourceVersion": "1", "labels": {"app.kubernetes.io/name": name}}}
    watch_node.ApiWatch("pods", sampler, tells=False)._pass_on("ADDED", pod, 0.0)
    for pid in ("100", "101", "102"):
        sampler._meet(pid, 0.0)
    assert [told.get_nowait()["pid"] - 100 for _ in range(told.qsize())] == inside


def test_a_process_that_becomes_another_one_of_the_same_program_is_told_with_its_new_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    monkeypatch.setattr(watch_node, "_out", told)
    monkeypatch.setattr(watch_node, "pod_of", lambda _: "pod")
    monkeypatch.setattr(watch_node, "number_inside", lambda _: 2)
    sampler = watch_node.Sampler()
    sampler.add_agent_pod("pod")
    words = ["sh", "-c", "echo; read line; exec sh -c 'echo; read line' second"]
    with subprocess.Popen(words, env={"USER": RUN_ID}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        sampler._meet(str(process.pid), time.time())
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        sampler._look_again(str(process.pid), time.time())
    assert [(line["kind"], line["command"][-1]) for line in (told.get_nowait(), told.get_nowait())] == [
        ("began", words[-1]),
        ("became", "second"),
    ]
