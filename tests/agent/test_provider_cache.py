"""The directory of providers that agents share: whole entries or none, whoever comes first and whatever fails."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from terrahalt_agent.adapters import provider_cache
from terrahalt_agent.adapters.provider_cache import ProviderCache, Stopped

PLATFORM = "linux_amd64"
PROVIDER = "registry.terraform.io/hashicorp/time"
WHERE = f"{PROVIDER}/0.13.0/{PLATFORM}"
NEVER = threading.Event()


@pytest.fixture
def cache(tmp_path: Path) -> ProviderCache:
    return a_cache(tmp_path)


def a_cache(folder: Path) -> ProviderCache:
    """Of one agent; all of a folder share."""
    (folder / "cache").mkdir(exist_ok=True)
    cache = ProviderCache(folder / "cache", PLATFORM)
    cache.check()
    return cache


def fetched(folder: Path, where: str = WHERE, text: str = "a provider") -> Path:
    """A run's plugin cache in which an engine has put one package."""
    package = folder / where
    (package / "docs").mkdir(parents=True)
    (package / "terraform-provider-time").write_text(text)
    (package / "terraform-provider-time").chmod(0o755)
    (package / "docs" / "LICENSE").write_text("MPL")
    return folder


def linked(cache: ProviderCache, into: Path, **locks: frozenset[str]) -> dict[str, str]:
    """What a run finds: each link, and the file of the provider in it."""
    cache.link(into, locks)
    return {
        str(path.relative_to(into)): (path / "terraform-provider-time").read_text() for path in into.glob("*/*/*/*/*")
    }


def incoming(folder: Path) -> list[str]:
    return os.listdir(folder / "cache" / ".incoming")


def test_what_one_run_has_fetched_the_next_one_finds(cache: ProviderCache, tmp_path: Path) -> None:
    assert linked(cache, tmp_path / "first") == {}
    assert cache.share(fetched(tmp_path / "first"), NEVER) == [f"{PROVIDER}/0.13.0"]
    assert linked(cache, tmp_path / "second") == {WHERE: "a provider"}
    assert (tmp_path / "second" / WHERE).is_symlink()
    assert incoming(tmp_path) == []


def test_what_a_run_has_found_there_it_does_not_share_again(cache: ProviderCache, tmp_path: Path) -> None:
    cache.share(fetched(tmp_path / "first"), NEVER)
    linked(cache, tmp_path / "second")
    assert cache.share(tmp_path / "second", NEVER) == []
    other = a_cache(tmp_path / "second")  # nor where it is not there any more
    assert other.share(tmp_path / "second", NEVER) == []


def test_of_another_platform_nothing_is_linked_or_shared(cache: ProviderCache, tmp_path: Path) -> None:
    cache.share(fetched(tmp_path / "first"), NEVER)
    arm = ProviderCache(tmp_path / "cache", "linux_arm64")
    assert linked(arm, tmp_path / "second") == {}
    assert arm.share(tmp_path / "first", NEVER) == []


def test_nobody_sees_a_part_of_an_entry(cache: ProviderCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_copying, may_end = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        is_copying.set()
        assert may_end.wait(30)

    monkeypatch.setattr(os, "fsync", wait)
    with ThreadPoolExecutor() as threads:
        sharing = threads.submit(cache.share, fetched(tmp_path / "first"), NEVER)
        assert is_copying.wait(30)
        seen = linked(cache, tmp_path / "second")
        may_end.set()
        sharing.result()
    assert seen == {}
    assert linked(cache, tmp_path / "third") == {WHERE: "a provider"}


def test_of_ten_that_share_the_same_at_once_one_is_first_and_the_others_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Barrier(10)  # all of them have begun before any of them is done
    monkeypatch.setattr(os, "fsync", lambda _: start.wait(30))
    folders = [fetched(tmp_path / f"run-{n}", text=f"of run {n}") for n in range(10)]
    caches = [a_cache(tmp_path) for _ in folders]
    with ThreadPoolExecutor(10) as threads:
        shared = list(threads.map(lambda pair: pair[0].share(pair[1], NEVER), zip(caches, folders, strict=True)))
    (first,) = [n for n, names in enumerate(shared) if names]
    assert linked(caches[0], tmp_path / "next") == {WHERE: f"of run {first}"}
    assert incoming(tmp_path) == []


def test_a_disk_that_is_full_leaves_nothing_half(
    cache: ProviderCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.share(fetched(tmp_path / "first"), NEVER)
    assert incoming(tmp_path) == []
    assert linked(cache, tmp_path / "second") == {}


def test_whoever_is_told_to_stop_leaves_nothing_half(cache: ProviderCache, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        cache.share(fetched(tmp_path / "first"), stop)
    assert incoming(tmp_path) == []
    assert linked(cache, tmp_path / "second") == {}


def test_an_entry_is_for_reading_only(cache: ProviderCache, tmp_path: Path) -> None:
    """What an engine would write through a link has to fail, not to change what others run."""
    cache.share(fetched(tmp_path / "first"), NEVER)
    linked(cache, tmp_path / "second")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "second" / WHERE).rglob("*")}
    assert modes["terraform-provider-time"] == 0o555
    assert modes["LICENSE"] == 0o444
    assert modes["docs"] == 0o555
    assert stat.S_IMODE((tmp_path / "second" / WHERE).stat().st_mode) == 0o555


def test_what_the_lock_file_names_is_linked_only_with_its_checksum(cache: ProviderCache, tmp_path: Path) -> None:
    cache.share(fetched(tmp_path / "first"), NEVER)
    right = (tmp_path / "cache" / WHERE / "h1").read_text()
    assert linked(cache, tmp_path / "second", **{PROVIDER: frozenset({right, "h1:other"})})
    assert linked(cache, tmp_path / "third", **{PROVIDER: frozenset({"h1:other"})}) == {}


def test_an_entry_that_nobody_can_vouch_for_is_left_out_and_the_others_are_not(
    cache: ProviderCache, tmp_path: Path
) -> None:
    cache.share(fetched(tmp_path / "first"), NEVER)
    versions = (tmp_path / "cache" / PROVIDER).resolve()
    for version in ("without", "no-text", "a-pipe"):
        (versions / version / PLATFORM / "package").mkdir(parents=True)
    (versions / "no-text" / PLATFORM / "h1").write_bytes(b"\xff\xfe")
    os.mkfifo(versions / "a-pipe" / PLATFORM / "h1")
    right = (tmp_path / "cache" / WHERE / "h1").read_text()
    assert set(linked(cache, tmp_path / "second", **{PROVIDER: frozenset({right})})) == {WHERE}


def test_a_file_whose_name_is_no_text_is_shared_like_any_other(cache: ProviderCache, tmp_path: Path) -> None:
    package = fetched(tmp_path / "first") / WHERE
    Path(os.fsdecode(bytes(package) + b"/\xff")).write_text("x")
    cache.share(tmp_path / "first", NEVER)
    assert set(linked(cache, tmp_path / "second")) == {WHERE}


def test_what_an_agent_did_not_live_to_finish_is_removed_a_day_later(
    cache: ProviderCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = (tmp_path / "cache" / ".incoming" / name for name in ("old", "young"))
    for entry in (old, young):
        (entry / "package").mkdir(parents=True)
    day_ago = young.stat().st_mtime - provider_cache._FORGOTTEN_S - 60
    os.utime(old, (day_ago, day_ago))
    cache.share(fetched(tmp_path / "first"), NEVER)
    assert incoming(tmp_path) == ["young"]


def test_a_directory_that_can_not_be_written_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ProviderCache(tmp_path / "nowhere", PLATFORM).check()
