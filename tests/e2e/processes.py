"""Test processes that share one installation: what each has of its own, and what is done once between them.

`pytest --numprocesses=2` starts them; without it there is one. The first that needs the installation puts it
there, and the last that goes takes it away. What would disturb the others (`disturbing`) is for tests that are
marked as `alone`, which run in one process. Called by `installation`.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Of this one."""
COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
MAX_COUNT = 2
"""There are namespaces for so many."""
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def name_of(label: str, number: int = NUMBER) -> str:
    """Each process has namespaces of its own: none finds another's tasks before its own in a queue."""
    return f"{label}-{number + 1}" if number else label


def names_of(label: str, count: int = COUNT) -> list[str]:
    return [name_of(label, number) for number in range(count)]


@contextmanager
def shared(put: Callable[[], None], remove: Callable[[], None]) -> Iterator[None]:
    with _locked(1) as users:
        if users == 1:
            put()
    try:
        yield
    finally:
        with _locked(-1) as users:
            if users == 0:
                remove()


def disturbing(act: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """For what must not happen while another process tests."""

    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        assert COUNT == 1, f"{act.__name__} disturbs the other test processes: mark the test with pytest.mark.alone"
        return act(*args, **kwargs)

    return alone


@contextmanager
def _locked(change: int) -> Iterator[int]:
    """How many use it from now on, if what is done meanwhile goes well."""
    record = _record()
    with record.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        users = int(file.read() or "0") + change
        yield users
        file.truncate(0)
        file.write(str(users))
    if users == 0:
        record.unlink()


def _record() -> Path:
    """Of this session: how many processes use the installation."""
    return Path(tempfile.gettempdir()) / f"terrahalt-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
