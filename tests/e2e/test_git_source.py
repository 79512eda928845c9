"""Tasks whose files come from a git server in the cluster, and cancels while it is being asked."""

from __future__ import annotations

import pytest

from tests.e2e import evidence
from tests.e2e.installation import Installation
from tests.e2e.servers import PublishedRepository
from tests.e2e.tasks import RunningTask, start_one

pytestmark = pytest.mark.cluster

GONE_WITHIN_S = 8.0
"""From the patch to the last process: git is killed, nothing of it is worth a grace."""


def start_from_git(installation: Installation, label: str, url: str, **fields: str) -> RunningTask:
    return start_one(installation, label, "", source={"git": {"url": url, **fields}})


@pytest.mark.parametrize("ref", ["stable", "main", "a commit"])
def test_a_task_runs_at_its_ref_and_path_and_says_which_commit_that_was(
    installation: Installation, published: PublishedRepository, ref: str
) -> None:
    commit, text = (published.second, "second") if ref == "main" else (published.first, "first")
    named = commit if ref == "a commit" else ref
    task = start_from_git(installation, "git", published.url, ref=named, path="envs/prod")
    assert task.until_ended() == "Succeeded", task.story()
    assert task.status["source"] == {"commit": commit}
    state = task.state()
    assert state is not None
    assert state["outputs"]["greeting"]["value"] == text
    evidence.assert_steps(task, "init", "plan", "apply")
    evidence.assert_over(task)


def test_a_ref_that_is_not_there_is_told_in_the_words_of_git(
    installation: Installation, published: PublishedRepository
) -> None:
    task = start_from_git(installation, "no-ref", published.url, ref="there-is-none")
    assert task.until_ended() == "Failed", task.story()
    assert task.status["result"]["reason"] == "SourceInvalid"
    assert "couldn't find remote ref there-is-none" in task.status["message"]
    assert "source.git.ref must be" in task.status["message"]
    assert "source" not in task.status
    evidence.assert_steps(task)
    evidence.assert_over(task)


@pytest.mark.parametrize("child", ["remote-http", "index-pack"])
def test_a_cancel_while_the_fetch_hangs_leaves_nothing_of_git(
    installation: Installation, published: PublishedRepository, silent_host: str, child: str
) -> None:
    url = f"http://{silent_host}/network" if child == "remote-http" else published.stalled_url
    task = start_from_git(installation, "in-fetch", url)
    task.until_child(child)
    task.until(lambda: "fetching HEAD of" in task.status.get("message", ""), 30, "it to say what it does")
    patched = task.cancel()
    assert task.until_ended() == "Cancelled", task.story()
    assert task.status["cancel"]["rung"] == "NotStarted"
    assert task.status["result"]["reason"] == "CancelledByUser"
    evidence.assert_steps(task)
    evidence.assert_over(task)
    assert evidence.gone_after_s(task, patched) < GONE_WITHIN_S, task.story()
    assert task.state() is None
