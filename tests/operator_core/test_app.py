"""What becomes of an operator's process when its time is over; as real processes, as only those can be replaced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from terrahalt_operator import app

ONE_LIFE = """
import asyncio, os, threading
from terrahalt_operator import app

async def run(settings):
    print("lives as", os.getpid(), flush=True)
    ending = os.environ.pop("ENDING", str(app.ASKED))
    await asyncio.get_running_loop().run_in_executor(None, print, "has a thread")
    if ending == "error":
        threading.Thread(target=threading.Event().wait).start()
        raise ExceptionGroup("unhandled errors", [RuntimeError("of ours")])
    return int(ending)

app._run = run
app.main()
"""


def a_life(ending: int | str) -> tuple[str, subprocess.Popen[str]]:
    """What it said, and the process, which has ended."""
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent", "ENDING": str(ending)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", ONE_LIFE], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        return child.communicate(timeout=20)[0], child
    finally:
        child.kill()


@pytest.mark.parametrize(("ending", "lives", "code"), [(app.ASKED, 1, 0), (app.FAILED, 1, 1), (app.DEPOSED, 2, 0)])
def test_who_was_deposed_begins_anew_in_its_own_place_and_nobody_else_does(ending: int, lives: int, code: int) -> None:
    said, child = a_life(ending)
    assert said.splitlines() == [f"lives as {child.pid}", "has a thread"] * lives
    assert child.returncode == code


def test_an_error_of_ours_is_told_and_ends_the_process_whatever_thread_goes_on() -> None:
    said, child = a_life("error")
    assert "our own error; another operator goes on" in said
    assert "RuntimeError: of ours" in said
    assert child.returncode == app.FAILED
