"""What is built once is found again by its content, and is whole whatever happened while it was built."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import cache
from tests.cluster.cache import Product, content_key


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERRAHALT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_product(build: cache.Build) -> Product:
    return Product("thing", content_key("thing"), "make the thing", "1 s", build)


def test_a_product_is_built_once() -> None:
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("content")

    first, second = cache.make(a_product(build)), cache.make(a_product(build))

    assert first == second
    assert (first / "file").read_text() == "content"
    assert len(builds) == 1


def test_a_build_that_fails_leaves_nothing_that_looks_finished(own_cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    product = a_product(build)
    with pytest.raises(KeyboardInterrupt):
        cache.make(product)

    assert not product.is_built
    assert list((own_cache / "tmp").rglob("*")) == []


def test_what_a_killed_run_left_half_built_is_gone_after_the_next_lock(own_cache: Path) -> None:
    (own_cache / "tmp" / "thing-half").mkdir(parents=True)

    with cache.lock():
        assert not (own_cache / "tmp" / "thing-half").exists()


def test_what_nobody_used_for_as_long_as_it_is_kept_goes_with_the_next_of_its_name() -> None:
    old, recent, new = (replace(a_product(lambda _: None), key=content_key(key), kept_s=60) for key in "abc")
    for product in (old, recent):
        cache.make(product)
    os.utime(old.path, (0, 0))

    cache.make(new)

    assert [product.path.is_dir() for product in (old, recent, new)] == [False, True, True]


def test_a_second_run_waits_for_the_lock(own_cache: Path) -> None:
    program = "from tests.cluster import cache\nwith cache.lock(): print('mine', flush=True)"
    with cache.lock():
        other = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=cache.PROJECT,
            env={**os.environ, "TERRAHALT_CACHE": str(own_cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert other.stderr is not None
        waiting = other.stderr.readline()
    out, _ = other.communicate(timeout=30)
    assert f"process {os.getpid()}" in waiting
    assert out == "mine\n"


def test_the_key_changes_with_content_names_and_modes_and_with_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "__pycache__").mkdir(parents=True)
    file = folder / "file"
    file.write_text("one")
    keys = [content_key(folder)]

    os.utime(file, (1, 1))
    (folder / "__pycache__" / "file.pyc").write_text("byte code")
    assert content_key(folder) == keys[0]

    file.write_text("two")
    keys.append(content_key(folder))
    file.chmod(0o755)
    keys.append(content_key(folder))
    file.rename(folder / "renamed")
    keys.append(content_key(folder))
    assert len(set(keys)) == 4


def test_the_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert content_key("ab", "c") != content_key("a", "bc")
