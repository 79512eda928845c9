"""Memory and disk: what is read of them, when they end a run, by which rung, and what that is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrahalt_agent.adapters.resources import Resources
from terrahalt_agent.core.events import (
    AftermathChecked,
    ProcessExited,
    ResourcesSeen,
    RunPrepared,
    SweepEmptied,
    TerraformFrozen,
)
from terrahalt_agent.core.instructions import (
    AbandonPreparation,
    ExecTerraform,
    InterruptTerraform,
    KillProviders,
    KillTerraform,
    RunInstruction,
    Sweep,
)
from terrahalt_agent.core.resources import Disk, Memory, disk_pressure, out_of_memory
from terrahalt_protocol.messages import CancelMode, CancelReason, Outcome, Rung, StateCondition, Step
from tests.agent.builders import (
    ADDRESS,
    FREE,
    TIMES,
    Story,
    an_error,
    begun,
    errored,
    interrupt_received,
    logged,
    summary,
    version,
)

MIB = 1024 * 1024
FULL_MEMORY = ResourcesSeen(Memory(461 * MIB, 512 * MIB), None)


def a_disk(used_percent: float) -> Disk:
    return Disk(round(used_percent * MIB), round((100 - used_percent) * MIB))


def disk_seen(used_percent: float) -> ResourcesSeen:
    return ResourcesSeen(None, a_disk(used_percent))


# -- what is read


def a_cgroup(folder: Path, **files: str) -> Resources:
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)
    return Resources(folder, folder)


STAT = "anon 100\nfile 900\nactive_file 300\ninactive_file 500\nslab 7\n"


def test_file_cache_is_no_use_of_memory(tmp_path: Path) -> None:
    resources = a_cgroup(tmp_path, max="1000\n", current="950\n", stat=STAT)
    assert resources.memory() == Memory(used_bytes=150, limit_bytes=1000)


def test_each_look_sees_what_is_true_now(tmp_path: Path) -> None:
    resources = a_cgroup(tmp_path, max="1000", current="950", stat=STAT)
    resources.memory()
    a_cgroup(tmp_path, max="2000", current="1000")
    assert resources.memory() == Memory(used_bytes=200, limit_bytes=2000)


@pytest.mark.parametrize(
    "files",
    [{"max": "max\n", "current": "1", "stat": STAT}, {}, {"max": "1000", "stat": STAT}, {"max": "x", "current": "1"}],
    ids=["no limit", "no cgroup v2", "a file that is missing", "no number"],
)
def test_without_a_limit_that_can_be_read_memory_is_not_watched(tmp_path: Path, files: dict[str, str]) -> None:
    assert a_cgroup(tmp_path, **files).memory() is None


def test_the_disk_is_that_of_the_working_directory(tmp_path: Path) -> None:
    disk = Resources(tmp_path, tmp_path).disk()
    assert disk is not None
    assert disk.used_bytes > 0
    assert Resources(tmp_path, tmp_path / "gone").disk() is None


# -- when it is too much


@pytest.mark.parametrize(("used", "is_over"), [(899, False), (900, False), (901, True), (2000, True)])
def test_memory_ends_a_run_over_nine_tenths_of_the_limit(used: int, is_over: bool) -> None:
    assert (out_of_memory(Memory(used, 1000)) is not None) is is_over
    assert out_of_memory(None) is None


@pytest.mark.parametrize(
    ("at_begin", "now", "is_over"),
    [(10, 85, False), (10, 86, True), (70, 86, True), (80, 89, False), (80, 91, True), (96, 97, False), (96, 99, True)],
)
def test_a_disk_ends_a_run_over_85_percent_or_once_half_of_what_was_left_is_gone(
    at_begin: int, now: int, is_over: bool
) -> None:
    assert (disk_pressure(a_disk(now), a_disk(at_begin)) is not None) is is_over
    assert disk_pressure(None, a_disk(at_begin)) is None


def test_a_filesystem_without_blocks_is_no_full_one() -> None:
    assert disk_pressure(Disk(0, 0), None) is None


# -- what a run does then


def test_memory_goes_straight_to_the_providers() -> None:
    story = Story().in_step(Step.APPLY, version(), begun())
    assert story.tell(FULL_MEMORY) == [InterruptTerraform(), KillProviders()]
    assert story.tell(FULL_MEMORY) == []
    result = story.end(1, interrupt_received(), errored(), an_error("Plugin did not respond"))
    assert (result.outcome, result.reason) == (Outcome.FAILED, "OutOfMemory")
    assert (result.state, result.open_addresses) == (StateCondition.INCOMPLETE, (ADDRESS,))
    assert result.message.startswith(
        "ended by the agent in terraform apply, which stopped after SIGINT; 461 MiB of the agent's 512 MiB of memory "
        "were in use: raise its memory limit"
    )
    assert story.last.cancel is not None
    assert (story.last.cancel.reason, story.last.cancel.cause) == (CancelReason.TIMEOUT, "OutOfMemory")
    assert (story.last.cancel.mode, story.last.cancel.rung) == (CancelMode.FORCE, Rung.KILL_PROVIDERS)


def test_memory_waits_for_no_gate_but_sigint_does() -> None:
    story = Story().in_step(Step.APPLY, version())
    assert story.tell(FULL_MEMORY) == [KillProviders()]
    assert story.tell(logged(begun())) == [InterruptTerraform(), KillProviders()]


def test_an_apply_that_loses_its_providers_at_the_gate_ends_for_lack_of_memory_too() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.tell(FULL_MEMORY)
    result = story.end(1, an_error("Plugin did not respond"))
    assert (result.outcome, result.reason, result.state) == (Outcome.FAILED, "OutOfMemory", StateCondition.COMPLETE)
    assert result.message.startswith("ended by the agent in terraform apply, which stopped without its providers; 461")
    assert story.last.cancel is not None
    assert story.last.cancel.rung is Rung.KILL_PROVIDERS


def test_the_errors_of_providers_that_were_killed_are_not_taken_for_earlier_ones() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.tell(FULL_MEMORY)
    story.tell(logged(an_error("Plugin did not respond"), begun()))
    result = story.end(1, interrupt_received(), errored())
    assert (result.outcome, result.reason) == (Outcome.FAILED, "OutOfMemory")


def test_a_gate_that_stays_shut_ends_soon_where_memory_is_short() -> None:
    story = Story().in_step(Step.APPLY, version())
    story.tell(FULL_MEMORY)
    assert story.wait()[0] == TIMES.gate_force_s
    assert story.tell(TerraformFrozen()) == [KillTerraform()]


def test_an_error_that_was_there_before_stays_the_reason() -> None:
    story = Story().in_step(Step.APPLY, begun(), begun("terraform_data.b"), errored())
    story.tell(FULL_MEMORY)
    result = story.end(1, interrupt_received(), errored("terraform_data.b"))
    assert (result.outcome, result.reason) == (Outcome.FAILED, "ApplyFailed")
    assert "memory" not in result.message


def test_what_ends_well_all_the_same_has_succeeded() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(FULL_MEMORY)
    result = story.end(0, summary())
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "Applied")
    assert "memory" not in result.message


def test_a_full_disk_is_a_cancel_with_its_whole_grace() -> None:
    story = Story().in_step(Step.APPLY, begun())
    assert story.tell(disk_seen(50)) == []
    assert story.tell(disk_seen(86)) == [InterruptTerraform()]
    assert story.tell(disk_seen(99)) == []
    assert story.wait() == (300.0, [KillProviders()])
    result = story.end(1, interrupt_received(), errored())
    assert (result.outcome, result.reason) == (Outcome.FAILED, "DiskPressure")
    assert "the disk of the working directory was 86 % full, 14 MiB were free: write less" in result.message
    assert story.last.cancel is not None
    assert (story.last.cancel.reason, story.last.cancel.cause) == (CancelReason.TIMEOUT, "DiskPressure")


def test_a_disk_that_others_had_filled_before_does_not_end_a_run() -> None:
    story = Story()
    story.tell(disk_seen(92))
    assert story.tell(RunPrepared()) == [ExecTerraform(Step.INIT)]
    assert story.tell(disk_seen(93)) == []
    assert story.tell(disk_seen(97)) == [InterruptTerraform()]


@pytest.mark.parametrize("seen", [FULL_MEMORY, disk_seen(99)])
def test_a_run_that_is_prepared_ends_before_terraform_is_started(seen: ResourcesSeen) -> None:
    story = Story()
    story.tell(disk_seen(0))
    assert story.tell(seen) == [AbandonPreparation(), Sweep()]
    story.tell(SweepEmptied(0))
    story.tell(AftermathChecked(FREE, None))
    assert story.run.result is not None
    assert (story.run.result.outcome, story.run.result.state) == (Outcome.FAILED, StateCondition.COMPLETE)
    assert story.run.result.message.startswith("ended by the agent before terraform was started; ")


def test_a_cancel_of_a_person_that_memory_makes_hurry_stays_a_persons() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.cancel()
    assert story.tell(disk_seen(99)) == []
    assert story.tell(FULL_MEMORY) == [KillProviders()]
    result = story.end(1, interrupt_received(), errored())
    assert (result.outcome, result.reason) == (Outcome.CANCELLED, "CancelledByUser")


def test_when_the_last_process_is_gone_nothing_is_ended_any_more() -> None:
    story = Story().in_step(Step.APPLY, begun())
    story.tell(ProcessExited(0))
    wanted: list[RunInstruction] = story.tell(FULL_MEMORY)
    assert wanted == []
    assert story.last.cancel is None
