"""What a person with nothing but kubectl sees: columns, waits, labels, events."""

from __future__ import annotations

import time

import pytest

from tests import engine
from tests.e2e import evidence
from tests.e2e.installation import NARROW, RUNS, Installation
from tests.e2e.tasks import RunningTask, source, start_one

pytestmark = pytest.mark.cluster

EVENTS_WITHIN_S = 20


def row(table: str, name: str) -> dict[str, str]:
    """One line of a table, by its columns' names; kubectl aligns them."""
    head, *lines = table.splitlines()
    starts = [i for i, c in enumerate(head) if c != " " and (i == 0 or head[i - 1] == " ")]
    (line,) = [line for line in lines if line.split()[0] == name]
    cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return dict(zip(head.split(), cells, strict=True))


def test_columns_labels_and_logs_tell_who_runs_what(installation: Installation) -> None:
    task = start_one(installation, "shown", source("sleeping_command", seconds="600"))
    task.until_child("sleep 600")
    task.until_phase("Applying")
    shown = row(task.kubectl("get", "tft"), task.name)
    assert (shown["PHASE"], shown["ACTION"], shown["WORKSPACE"]) == ("Applying", "Apply", task.workspace)
    assert shown["AGENT"] == task.pod_name
    pods = task.kubectl("get", "pods", "--label-columns=terrahalt.dev/task,terrahalt.dev/run")
    assert (row(pods, task.pod_name)["TASK"], row(pods, task.pod_name)["RUN"]) == (task.name, task.run_id)
    assert "terraform_data.slow: Provisioning with 'local-exec'" in task.kubectl("logs", task.pod_name)
    assert installation.pool_status(RUNS)["busy"] >= 1

    task.cancel()
    task.kubectl("wait", f"terraformtask/{task.name}", "--for=condition=Finished", "--timeout=60s", within_s=70)
    assert task.until_ended() == "Cancelled"
    wide = row(task.kubectl("get", "tft", "--output=wide"), task.name)
    assert (wide["PHASE"], wide["REASON"], wide["RUNG"]) == ("Cancelled", "CancelledByUser", "Interrupt")
    evidence.assert_over(task)

    def is_unlabelled() -> bool:
        seen = installation.timeline.latest("pods", RUNS, task.pod_name)
        return seen is None or "terrahalt.dev/task" not in seen.object["metadata"]["labels"]

    task.until(is_unlabelled, 15, "its pod to be nobody's")


def test_the_progress_column_counts_resources(installation: Installation) -> None:
    task = start_one(installation, "progress", source("greeting", text="x"))
    assert task.until_ended() == "Succeeded", task.story()
    assert row(task.kubectl("get", "tft"), task.name)["PROGRESS"] == "1/1"


def test_kubectl_wait_returns_when_a_task_has_ended_well(installation: Installation) -> None:
    task = start_one(installation, "awaited", source("sleeping_command", seconds="1"))
    for condition in ("Finished", "Ready"):
        task.kubectl("wait", f"tft/{task.name}", f"--for=condition={condition}", "--timeout=60s", within_s=70)
    assert task.until_ended() == "Succeeded"


def test_describe_tells_the_story_as_events(installation: Installation) -> None:
    task = start_one(installation, "described", source("sleeping_provider", count="1", duration="300s"))
    task.until_phase("Applying")
    _until_told(task, "Applying")
    task.cancel()
    assert task.until_ended() == "Cancelled", task.story()
    _until_told(task, "CancelledByUser")


def _until_told(task: RunningTask, reason: str) -> None:
    deadline = time.monotonic() + EVENTS_WITHIN_S
    while reason not in (reasons := _event_reasons(task)) and time.monotonic() < deadline:
        pass  # each look takes kubectl a while
    assert reason in reasons, reasons


def _event_reasons(task: RunningTask) -> set[str]:
    _, _, events = task.kubectl("describe", "tft", task.name).partition("\nEvents:")
    return {line.split()[1] for line in events.splitlines() if line.split()[:1] in (["Normal"], ["Warning"])}


def test_a_pool_shows_its_agents_and_is_scaled_as_kubectl_scales(installation: Installation) -> None:
    installation.wait_for_idle(NARROW, 1)
    shown = row(installation.kubectl("--namespace", NARROW, "get", "agentpools"), "default")
    assert {k: shown[k] for k in ("ENGINE", "AGENTS", "IDLE", "BUSY", "STARTING", "QUEUED")} == {
        "ENGINE": engine.TYPE,
        "AGENTS": "1",
        "IDLE": "1",
        "BUSY": "0",
        "STARTING": "0",
        "QUEUED": "0",
    }
    installation.kubectl("--namespace", NARROW, "scale", "agentpool", "default", "--replicas=0")
    try:
        installation.timeline.until(
            lambda: installation.pool_status(NARROW)["agents"] == 0, 60, "the idle agent to be taken away"
        )
    finally:
        installation.scale_pool(NARROW, 1)
