"""Tries mutations, each in a copy of the tree in a temporary folder: the tree itself is never changed.

The tests are first run on the copy as it is, because only a test that passes there can tell anything.
Called by `__main__`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.mutations.catalogue import CatalogueError, Mutation

_COPIED = ("protocol", "operator", "agent_image", "tests", "docs", "pyproject.toml")
_LIMIT_S = 120.0
"""Of one try: a guard against endlessness may be what was taken out."""
_FAREWELL_S = 20.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)
_PASSED, _TESTS_FAILED = 0, 1


class Verdict(StrEnum):
    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """The guard is not in its file, or the tests could not be run: that proves nothing."""


@dataclass(frozen=True, slots=True)
class Tried:
    mutation: Mutation
    verdict: Verdict
    by: str
    """The test that failed first, or what pytest said where it could not run any."""
    took_s: float


class Judge:
    """Copies of one tree, so many as may be used at once."""

    def __init__(self, copies: Iterable[Path], temporary: Path) -> None:
        self._free = SimpleQueue[Path]()
        for copy in copies:
            self._free.put(copy)
        self._temporary = temporary
        self._number = 0
        self._lock = threading.Lock()

    def as_it_is(self, tests: Iterable[str]) -> str:
        """What fails without any mutation; empty: nothing, as it should be."""
        with self._a_copy() as copy:
            code, said = self._run(copy, sorted(set(tests)))
        return "" if code == _PASSED else said

    def try_(self, mutation: Mutation) -> Tried:
        began = time.monotonic()
        with self._a_copy() as copy:
            path = copy / mutation.file
            before = path.read_text(encoding="utf-8")
            try:
                after = mutation.applied(before)
            except CatalogueError as error:
                return Tried(mutation, Verdict.BROKEN, str(error), 0.0)
            path.write_text(after, encoding="utf-8")
            try:
                code, said = self._run(copy, mutation.tests)
            finally:
                path.write_text(before, encoding="utf-8")
        verdict = {_PASSED: Verdict.SURVIVED, _TESTS_FAILED: Verdict.KILLED}.get(code, Verdict.BROKEN)
        failed = _FAILED.search(said)
        by = "" if verdict is Verdict.SURVIVED else failed[1] if failed else said.strip()[-300:]
        return Tried(mutation, verdict, by, time.monotonic() - began)

    def try_all(self, mutations: Iterable[Mutation], jobs: int) -> Iterator[Tried]:
        """In their order, each as soon as it and those before it are known."""
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(self.try_, mutations)

    @contextmanager
    def _a_copy(self) -> Iterator[Path]:
        copy = self._free.get()
        try:
            yield copy
        finally:
            self._free.put(copy)

    def _run(self, copy: Path, tests: Iterable[str]) -> tuple[int, str]:
        """pytest's exit code, and what it said."""
        with self._lock:
            self._number += 1
            own = self._temporary / f"pytest-{self._number}"
        # Bytecode is believed by second and size: a mutation may change neither.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={own}"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        pytest = subprocess.Popen(
            command,
            cwd=copy,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = pytest.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.send_signal(signal.SIGINT)  # fixtures end what they started
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.wait(_FAREWELL_S)
            return _TESTS_FAILED, f"no end within {_LIMIT_S:.0f} s"
        finally:
            pytest.kill()
            pytest.communicate()
            shutil.rmtree(own, ignore_errors=True)
        return pytest.returncode, said


@contextmanager
def a_judge(tree: Path, jobs: int) -> Iterator[Judge]:
    """The copies go with it."""
    with TemporaryDirectory(prefix="terrahalt-mutations-") as temporary:
        copies = [Path(temporary) / f"tree-{number}" for number in range(jobs)]
        for copy in copies:
            copy.mkdir()
            for name in _COPIED:
                _copy(tree / name, copy / name)
        yield Judge(copies, Path(temporary))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    elif source.exists():
        shutil.copy(source, target)
