"""Backends for terraform's state that a test runs itself, each behind a proxy that breaks it when the test says so."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable

_LISTENING_WITHIN_S = 30.0
_PORTS = iter(range(20000 + os.getpid() * 100 % 11900, 32000))
"""Those of a process and of the one after it are not the same."""


def is_free(port: int, address: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> bool:
    with contextlib.suppress(OSError), socket.create_server((address, port), family=family):
        return True
    return False


def a_free_port(suits: Callable[[int], bool] = is_free) -> int:
    """Of those that the kernel gives to no connection, which else might have it before it is opened again."""
    return next(port for port in _PORTS if suits(port))


def until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LISTENING_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")
