"""Runs other programs: quietly, with their output in a log file of the cache.

It never leaves a child behind: whatever ends a call early (Ctrl-C, a timeout, another step that
failed) ends the child too. Called by every module that starts a program.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import cache
from tests.cluster.failure import CommandFailed
from tests.cluster.speech import say, spoken

TAIL_LINES = 25
# Words of a command line; paths stand for themselves.
Command = Sequence[Any]
# A line now and then tells a person that a compiler of several minutes has not hung.
SIGN_OF_LIFE_S = 60
# How long a child has from SIGTERM to SIGKILL: apt and docker clean up after themselves within this.
END_GRACE_S = 10

_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()


def run(
    argv: Command,
    *,
    log: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    timeout_s: float | None = None,
) -> None:
    """Runs to the end with all output added to the log file of that name. `env` is added to ours.

    Raises CommandFailed."""
    words = [str(word) for word in argv]
    path = cache.log_file(log)
    began = time.monotonic()
    with path.open("ab") as output, _input(stdin) as source:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        start = output.tell()
        child = subprocess.Popen(words, cwd=cwd, env=_environment(env), stdin=source, stdout=output, stderr=output)
        with _ended_with_us(child):
            while True:
                try:
                    status: int | str = child.wait(_next_wait(began, timeout_s))
                    break
                except subprocess.TimeoutExpired:
                    lasted = time.monotonic() - began
                    if timeout_s is not None and lasted >= timeout_s:
                        status = f"no result within {spoken(timeout_s)}"
                        break
                    say(f"      still running after {spoken(lasted)}: {words[0]} (log: {path})")
    if status != 0:
        raise CommandFailed(words, status, path, _tail(path, start))


def output(
    argv: Command,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60,
) -> str:
    """The standard output, stripped. Raises CommandFailed."""
    words = [str(word) for word in argv]
    child = subprocess.Popen(
        words,
        cwd=cwd,
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with _ended_with_us(child):
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise CommandFailed(words, f"no result within {spoken(timeout_s)}", None, "") from None
    if child.returncode != 0:
        text = (out + err).decode(errors="replace").strip()
        raise CommandFailed(words, child.returncode, None, "\n".join(text.splitlines()[-TAIL_LINES:]))
    return out.decode(errors="replace").strip()


def succeeds(argv: Command, *, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> bool:
    try:
        output(argv, env=env, timeout_s=timeout_s)
    except (CommandFailed, OSError):
        return False
    return True


def end_all_children() -> None:
    """For the end of the whole tool while other threads still wait for programs."""
    with _running_lock:
        children = list(_running)
    for child in children:
        child.terminate()


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(added or {})}


@contextmanager
def _input(path: Path | None) -> Iterator[int]:
    if path is None:
        yield subprocess.DEVNULL
        return
    with path.open("rb") as file:
        yield file.fileno()


@contextmanager
def _ended_with_us(child: subprocess.Popen[bytes]) -> Iterator[None]:
    with _running_lock:
        _running.add(child)
    try:
        yield
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        with _running_lock:
            _running.discard(child)


def _next_wait(began: float, timeout_s: float | None) -> float:
    if timeout_s is None:
        return SIGN_OF_LIFE_S
    return max(0.0, min(SIGN_OF_LIFE_S, began + timeout_s - time.monotonic()))


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])
