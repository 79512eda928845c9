"""What a run has left on its agent is gone before the next one: real files, processes and a real log."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from terrahalt_agent.adapters import clean_room
from terrahalt_agent.adapters.clean_room import IPC, CleanRoom, UncleanError
from terrahalt_agent.adapters.descendants import Descendants, Swept
from terrahalt_agent.adapters.pod_log import PodLog
from terrahalt_agent.adapters.provider_cache import ProviderCache
from terrahalt_agent.core.redaction import Redactor

_COLUMNS = "       key      shmid perms\n"


class Room:
    """Directories as an agent has them, with what a run wrote."""

    def __init__(self, folder: Path, log_fd: int) -> None:
        self.work, self.tmp, self.states = folder / "work", folder / "tmp", folder / "work" / "states"
        for path in (self.work, self.tmp, self.states):
            path.mkdir()
        self.message = folder / "termination-log"
        self.message.write_text("the final report")
        self.redactor = Redactor()
        self.log = PodLog(self.redactor, log_fd)
        self.ipc = folder / "shm", folder / "missing"
        self.ipc[0].write_text(_COLUMNS)
        self.swept = Swept(0, ())
        self.cache = ProviderCache(self.tmp / "shared" / "providers", "linux_amd64")

    def restore(self, scratch: bool = True) -> None:
        class Nobody(Descendants):
            """A test runs other children than a run's."""

            def sweep(nobody, within_s: float) -> Swept:  # noqa: N805
                return self.swept

        CleanRoom(
            self.work,
            (self.tmp,) if scratch else (),
            kept=(self.states, self.tmp / "shared" / "providers"),
            ipc=self.ipc,
            cache=self.cache,
            descendants=Nobody(),
            pod_log=self.log,
            termination_log=str(self.message),
        ).restore()


@pytest.fixture
def log_ends() -> tuple[int, int]:
    return os.pipe()


@pytest.fixture
def room(tmp_path: Path, log_ends: tuple[int, int]) -> Room:
    return Room(tmp_path, log_ends[1])


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_every_file_of_a_run_is_gone_and_what_is_no_runs_stays(room: Room) -> None:
    module = room.work / "01JRUN" / "module"
    module.mkdir(parents=True)
    (module / "terraform.tfvars").write_text("password = 1")
    (room.work / ".hidden").write_text("x")
    (room.tmp / "tf-plugin-socket").write_text("x")
    (room.states / "network.tfstate").write_text("{}")
    room.restore()
    assert files_below(room.work) == {"states", "states/network.tfstate"}
    assert files_below(room.tmp) == set()
    assert room.message.read_text() == ""


def test_what_is_mounted_there_is_no_runs(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = room.tmp / "modules"
    mounted.mkdir()
    (mounted / "of-all").write_text("x")
    owner = clean_room._owner
    monkeypatch.setattr(clean_room, "_owner", lambda e: (os.getuid(), -1) if e.path == str(mounted) else owner(e))
    room.restore()
    assert files_below(room.tmp) == {"modules", "modules/of-all"}


def test_a_directory_without_any_rights_is_removed_too(room: Room) -> None:
    locked = room.work / "a" / "b"
    locked.mkdir(parents=True)
    (locked / "file").write_text("x")
    (locked / "file").chmod(0)
    for path in (locked, locked.parent):
        path.chmod(0)
    room.restore()
    assert files_below(room.work) == {"states"}


def test_links_are_removed_and_what_they_lead_to_is_not(room: Room, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (room.work / "folder").symlink_to(outside)
    (room.work / "file").symlink_to(outside / "kept")
    (room.tmp / "dangling").symlink_to("nowhere")
    os.mkfifo(room.tmp / "pipe")
    room.restore()
    assert files_below(room.work) == {"states"}
    assert files_below(room.tmp) == set()
    assert (outside / "kept").read_text() == "x"


def test_what_agents_share_stays_wherever_it_is(room: Room) -> None:
    (room.tmp / "shared" / "providers" / "registry.example").mkdir(parents=True)
    (room.tmp / "shared" / "of-a-run").write_text("x")
    room.restore()
    assert files_below(room.tmp) == {"shared", "shared/providers", "shared/providers/registry.example"}


def test_an_agent_whose_thread_still_waits_for_the_providers_volume_takes_no_other_run(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up by its run; the agent has only so many threads, and a sweep needs one."""
    is_asked, answers = threading.Event(), threading.Event()

    def hang(path: Path) -> None:
        is_asked.set()
        answers.wait()

    monkeypatch.setattr(ProviderCache, "_forget", hang)
    waiting = threading.Thread(target=room.cache.share, args=(room.tmp / "plugins", threading.Event()))
    waiting.start()
    is_asked.wait()
    try:
        with pytest.raises(UncleanError, match="volume of the pool's providers does not answer"):
            room.restore()
    finally:
        answers.set()
        waiting.join()
    room.restore()


def test_who_is_not_alone_in_its_scratch_directories_leaves_them_alone(room: Room) -> None:
    (room.tmp / "of-somebody").write_text("x")
    room.restore(scratch=False)
    assert files_below(room.tmp) == {"of-somebody"}


def test_a_process_that_can_not_be_killed_is_told(room: Room) -> None:
    room.swept = Swept(1, (4711,))
    with pytest.raises(UncleanError, match=r"processes \(4711,\) are alive"):
        room.restore()


def test_shared_memory_that_is_left_is_told(room: Room) -> None:
    room.ipc[0].write_text(f"{_COLUMNS}         0          1   600\n")
    with pytest.raises(UncleanError, match="shm: not empty"):
        room.restore()


def test_it_waits_until_the_log_of_the_run_is_written_with_its_secrets_redacted(
    room: Room, log_ends: tuple[int, int]
) -> None:
    room.redactor.add(["a secret value"])
    room.log.line("it said: a secret value")
    room.restore()
    room.redactor.forget()
    assert os.read(log_ends[0], 1000) == b"it said: [redacted]\n"


def test_a_log_that_nobody_reads_is_told(
    room: Room, log_ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_room, "_FLUSH_S", 0.05)
    fill(log_ends[1])
    room.log.line("the last words")
    with pytest.raises(UncleanError, match="nobody reads the pod's log"):
        room.restore()
    reader = threading.Thread(target=drain, args=(log_ends[0],))
    reader.start()
    monkeypatch.setattr(clean_room, "_FLUSH_S", 10.0)
    room.restore()
    os.close(log_ends[1])
    reader.join()


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(fd, True)


def drain(fd: int) -> None:
    while os.read(fd, 65536):
        pass


def test_the_real_sweep_is_asked_first(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process of the run could write what was just removed."""
    order: list[str] = []
    real: Callable[..., None] = clean_room._empty

    def empty(*arguments: object) -> None:
        order.append("files")
        real(*arguments)

    def sweep(self: Descendants, within_s: float) -> Swept:
        order.append("processes")
        return Swept(0, ())

    monkeypatch.setattr(clean_room, "_empty", empty)
    monkeypatch.setattr(Descendants, "sweep", sweep)
    paths = room.work, (room.tmp,)
    CleanRoom(
        *paths,
        kept=(),
        ipc=(),
        cache=None,
        descendants=Descendants(),
        pod_log=room.log,
        termination_log=str(room.message),
    ).restore()
    assert order[0] == "processes"
    assert set(order[1:]) == {"files"}


def test_the_kernels_own_lists_can_be_read() -> None:
    listed = subprocess.run(["cat", *map(str, IPC)], capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.split()[0] == "key"] == ["shmid", "msqid", "semid"]
