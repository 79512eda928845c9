"""One task, two runs: the first keeps its plan for a person, the second applies that and plans nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terrahalt_agent.adapters.cluster_api import ClusterApi
from terrahalt_agent.adapters.kept_plans import KeptPlans, PlanArchive, PlanExpiredError
from terrahalt_agent.adapters.secret_parts import PART_BYTES, TooLargeError
from terrahalt_agent.core.events import (
    AftermathChecked,
    CancelRequested,
    OutputDrained,
    PlanKept,
    RunPrepared,
    StateKept,
    SweepEmptied,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    CheckAftermath,
    DrainOutput,
    ExecTerraform,
    KeepPlan,
    KeepState,
    Sweep,
)
from terrahalt_protocol.messages import (
    Action,
    Approval,
    ApprovedPlan,
    CancelReason,
    KeptPlan,
    Outcome,
    PlanSummary,
    Result,
    Source,
    StateCondition,
    Step,
)
from tests.agent.builders import FREE, RUN_ID, TIMES, Story, a_start, an_error, summary, version
from tests.agent.fake_api import FakeApi, a_fake_api, asking

SOURCE = Source(inline={"main.tf": ""})
DIGEST = "sha256:" + "0" * 64
TO_KEEP = Approval(source=SOURCE)
APPROVED = Approval(
    source=SOURCE, plan=ApprovedPlan(run_id="01JPLAN", digest=DIGEST, summary=PlanSummary(add=2, destroy=1))
)
KEPT = PlanKept(DIGEST, "x86_64")


def planning(**fields: object) -> Story:
    """A run whose plan is made, and is to be kept."""
    story = Story(approval=TO_KEEP, **fields).in_step(Step.PLAN)  # type: ignore[arg-type]
    assert story.end_process(0, version(), summary("plan")) == [KeepPlan()]
    return story


def applying() -> Story:
    return Story(approval=APPROVED)


def ended(story: Story) -> Result:
    story.tell(AftermathChecked(FREE))
    assert story.run.result is not None
    return story.run.result


# ---- the run that plans


@pytest.mark.parametrize("action", [Action.APPLY, Action.DESTROY])
def test_a_run_that_needs_a_person_ends_with_its_plan_and_applies_nothing(action: Action) -> None:
    story = planning(action=action)
    assert story.tell(KEPT) == [CheckAftermath()]
    result = ended(story)
    assert result.kept_plan == KeptPlan(digest=DIGEST, architecture="x86_64")
    assert (result.reason, result.state, result.exit_code) == ("AwaitingApproval", StateCondition.COMPLETE, 0)
    assert story.last.plan == PlanSummary(add=1)
    assert ExecTerraform(Step.APPLY) not in story.done


def test_an_operator_that_does_not_know_kept_plans_takes_none_for_a_success() -> None:
    story = planning()
    story.tell(KEPT)
    assert ended(story).outcome is Outcome.FAILED


def test_a_cancel_while_the_plan_is_kept_ends_what_shows_it_and_nothing_waits() -> None:
    story = planning()
    assert story.tell(CancelRequested(CancelReason.USER)) == [AbandonPreparation(), Sweep()]
    assert story.tell(KEPT) == [], "it came too late"
    assert story.tell(SweepEmptied(1)) == [DrainOutput()]
    assert story.tell(OutputDrained()) == [CheckAftermath()]
    result = ended(story)
    assert (result.outcome, result.reason, result.kept_plan) == (Outcome.CANCELLED, "CancelledByUser", None)


def test_a_cancel_after_the_plan_was_kept_wins_as_long_as_the_run_has_not_ended() -> None:
    story = planning()
    story.tell(KEPT)
    story.cancel()
    result = ended(story)
    assert (result.outcome, result.kept_plan) == (Outcome.CANCELLED, None)


def test_a_plan_that_can_not_be_kept_fails_the_run_and_says_why() -> None:
    story = planning()
    assert story.tell(PlanKept(reason="PlanTooLarge", problem="it is too large")) == [AbandonPreparation(), Sweep()]
    story.tell(SweepEmptied(0))
    story.tell(OutputDrained())
    result = ended(story)
    assert (result.outcome, result.reason, result.message) == (Outcome.FAILED, "PlanTooLarge", "it is too large")
    assert result.kept_plan is None


def test_a_plan_that_is_kept_too_slowly_is_given_up() -> None:
    story = planning()
    assert story.wait() == (TIMES.keep_plan_s, [AbandonPreparation(), Sweep()])
    story.tell(SweepEmptied(0))
    story.tell(OutputDrained())
    assert ended(story).reason == "PlanNotKept"


def test_a_plan_that_failed_is_not_kept() -> None:
    story = Story(approval=TO_KEEP).in_step(Step.PLAN)
    assert story.end_process(1, an_error()) == [CheckAftermath()]
    assert ended(story).reason == "PlanFailed"


def test_without_an_approval_an_apply_follows_its_plan() -> None:
    story = Story().in_step(Step.PLAN)
    assert story.end_process(0, summary("plan")) == [KeepState()]
    assert story.tell(KEPT) == [], "nobody has asked"


# ---- the run that applies


def test_an_approved_plan_is_applied_after_init_and_nothing_is_planned() -> None:
    story = applying()
    assert story.tell(RunPrepared()) == [ExecTerraform(Step.INIT)]
    assert story.end_process(0) == [KeepState()]
    assert story.tell(StateKept()) == [ExecTerraform(Step.APPLY)]
    result = story.end(0, summary())
    assert (result.outcome, result.reason, result.kept_plan) == (Outcome.SUCCEEDED, "Applied", None)
    assert ExecTerraform(Step.PLAN) not in story.done
    assert {report.plan for report in story.reports} == {PlanSummary(add=2, destroy=1)}


def test_no_approved_plan_is_applied_after_a_cancel() -> None:
    story = applying()
    story.tell(RunPrepared())
    story.cancel()
    assert story.end_process(0) == [CheckAftermath()]
    assert ended(story).outcome is Outcome.CANCELLED


def test_no_approved_plan_is_applied_where_the_state_could_not_be_kept() -> None:
    story = applying()
    story.tell(RunPrepared())
    story.end_process(0)
    assert story.tell(StateKept("no API server")) == [Sweep()]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step.APPLY, "Saved plan is stale"),
        (Step.APPLY, "Saved plan does not match the given state"),
        (Step.APPLY, "Failed to read plan from plan file"),
        (Step.APPLY, "Inconsistent dependency lock file"),
        (Step.INIT, "Provider dependency changes detected"),
    ],
)
def test_a_plan_that_terraform_does_not_take_has_expired(step: Step, words: str) -> None:
    story = applying()
    story.tell(RunPrepared())
    if step is Step.APPLY:
        story.end_process(0)
        story.tell(StateKept())
    result = story.end(1, an_error(words))
    assert (result.outcome, result.reason) == (Outcome.FAILED, "PlanExpired")
    assert words in result.message
    assert result.message.endswith("nothing was changed: plan anew, by a new task")


def test_another_failure_of_an_approved_plan_is_a_failure_of_the_apply() -> None:
    story = applying()
    story.tell(RunPrepared())
    story.end_process(0)
    story.tell(StateKept())
    assert story.end(1, an_error("no such bucket")).reason == "ApplyFailed"


def test_a_plan_of_the_same_run_does_not_expire() -> None:
    assert Story().in_step(Step.APPLY).end(1, an_error("Saved plan is stale")).reason == "ApplyFailed"


# ---- where it is kept


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with a_fake_api() as api:
        yield api


@pytest.fixture
async def cluster(fake: FakeApi, tmp_path: Path) -> AsyncIterator[ClusterApi]:
    async with asking(fake, tmp_path) as api:
        yield api


def an_archive(noise: int = 0, lock_file: bytes | None = b"a lock file") -> PlanArchive:
    secrets = ("a secret", "größer")
    return PlanArchive(b"a plan" + os.urandom(noise), lock_file, "commit:1234", "wird größer".encode(), secrets)


def approved(digest: str) -> ApprovedPlan:
    return ApprovedPlan(run_id=RUN_ID, digest=digest, summary=PlanSummary())


@pytest.mark.parametrize("lock_file", [b"a lock file", b"", None])
async def test_what_was_kept_is_what_is_fetched_in_as_many_secrets_as_it_needs(
    fake: FakeApi, cluster: ClusterApi, lock_file: bytes | None
) -> None:
    kept = an_archive(3 * PART_BYTES, lock_file)
    plans = KeptPlans(cluster)
    digest = await plans.keep(kept, a_start())
    assert await plans.fetch(approved(digest)) == kept
    assert fake.names == {"terrahalt-plan-01jrun", *(f"terrahalt-plan-01jrun-part-{n}" for n in (1, 2, 3))}


async def test_the_secrets_of_a_plan_go_with_their_task(fake: FakeApi, cluster: ClusterApi) -> None:
    await KeptPlans(cluster).keep(an_archive(), a_start())
    assert fake.secret("terrahalt-plan-01jrun")["metadata"]["ownerReferences"] == [
        {"apiVersion": "terrahalt.dev/v1alpha1", "kind": "TerraformTask", "name": "network", "uid": "task-uid"}
    ]


async def test_people_find_plan_and_text_in_an_archive_whose_checksum_they_approve(
    fake: FakeApi, cluster: ClusterApi
) -> None:
    digest = await KeptPlans(cluster).keep(an_archive(), a_start())
    archive = gzip.decompress(base64.b64decode(fake.secret("terrahalt-plan-01jrun")["data"]["plan"]))
    assert digest == f"sha256:{hashlib.sha256(archive).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        assert files.getnames() == ["plan.tfplan", ".terraform.lock.hcl", "source", "plan.txt", "secrets.json"]


async def test_a_plan_that_is_too_large_is_kept_in_no_secret(fake: FakeApi, cluster: ClusterApi) -> None:
    with pytest.raises(TooLargeError, match="can be kept"):
        await KeptPlans(cluster, max_bytes=PART_BYTES).keep(an_archive(PART_BYTES), a_start())
    assert fake.names == set()


async def test_another_plan_than_the_approved_one_is_not_fetched(cluster: ClusterApi) -> None:
    plans = KeptPlans(cluster)
    digest = await plans.keep(an_archive(), a_start())
    assert await plans.fetch(approved(digest))
    await plans.keep(an_archive(10), a_start())
    with pytest.raises(PlanExpiredError, match="not the plan that was approved"):
        await plans.fetch(approved(digest))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "was not found"), (b"junk", "is damaged"), (gzip.compress(b"a")[:-9], "is damaged")],
    ids=["gone", "junk", "cut"],
)
async def test_a_plan_that_is_gone_or_damaged_has_expired(
    fake: FakeApi, cluster: ClusterApi, content: bytes | None, says: str
) -> None:
    if content is not None:
        fake.put_secret("terrahalt-plan-01jrun", plan=content)
    with pytest.raises(PlanExpiredError, match=says):
        await KeptPlans(cluster).fetch(approved(DIGEST))
