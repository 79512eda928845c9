"""The sweep on real processes: what was reparented is found, what we wait for is left to its waiter.

In a process of their own, because the one that runs the tests must not become everybody's subreaper.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.agent_terraform.harness import ROOT

_BEGIN = """
import os, signal, subprocess, time
from terrahalt_agent.adapters.descendants import Descendants, become_subreaper
become_subreaper()
descendants = Descendants()
def started(*argv):
    nothing = subprocess.DEVNULL
    return subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing)
def children():
    states = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                state, parent = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == os.getpid():
                states.append(state)
    return states
def programs_below(root):
    parents, programs = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            head, tail = open(f"/proc/{pid}/stat").read().rsplit(")", 1)
        except OSError:
            continue
        parents.setdefault(int(tail.split()[1]), []).append(int(pid))
        programs[int(pid)] = head.partition("(")[2]
    found, left = [], list(parents.get(root, ()))
    while left:
        pid = left.pop()
        found.append(programs[pid])
        left += parents.get(pid, ())
    return found
def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
"""


def in_a_process_of_its_own(code: str) -> None:
    env = os.environ | {"PYTHONPATH": f"{ROOT}/agent_image/src:{ROOT}/protocol/src"}
    command = [sys.executable, "-c", _BEGIN + code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tree_of_sessions_and_orphans_is_cleared() -> None:
    in_a_process_of_its_own("""
child = started("sh", "-c", "setsid sh -c 'trap \\"\\" TERM; sleep 77 & sleep 77' & (env -i sleep 77 &) ; wait")
other = started("sh", "-c", "(setsid sleep 77 &) ; sleep 77")
until(lambda: programs_below(os.getpid()).count("sleep") == 5)
swept = descendants.sweep(10)
assert swept.alive == (), swept
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
    raise AssertionError("a child is left")
except ChildProcessError:
    pass
""")


def test_nothing_to_sweep_is_empty_at_once() -> None:
    in_a_process_of_its_own("""
begun = time.monotonic()
swept = descendants.sweep(10)
assert (swept.killed, swept.alive) == (0, ())
assert time.monotonic() - begun < 5
""")


def test_a_process_that_somebody_waits_for_keeps_its_exit_code() -> None:
    in_a_process_of_its_own("""
child = started("sh", "-c", "exit 7")
descendants.own(child.pid)
until(lambda: b") Z " in open(f"/proc/{child.pid}/stat", "rb").read())
descendants.reap_orphans()
swept = descendants.sweep(0.05)
assert swept.alive == (child.pid,), swept
assert child.wait() == 7
descendants.disown(child.pid)
assert descendants.sweep(5).alive == ()
""")


def test_orphans_are_reaped_while_terraform_runs() -> None:
    in_a_process_of_its_own("""
child = started("sh", "-c", "for i in 1 2 3; do (true &) ; done; exec sleep 77")
descendants.own(child.pid)
until(lambda: children().count("Z") == 3)
descendants.reap_orphans()
until(lambda: children() == ["S"])
assert child.poll() is None
child.kill()
child.wait()
""")


def test_all_but_terraform_is_killed_and_terraform_is_spared() -> None:
    in_a_process_of_its_own("""
child = started("sh", "-c", "sleep 77 & sleep 77; exit 5")
descendants.own(child.pid)
until(lambda: descendants.kill(spare=child.pid) >= 0 and child.poll() is not None)
assert child.returncode == 5
""")


def test_a_stopped_process_is_seen_as_stopped_and_killed_all_the_same() -> None:
    in_a_process_of_its_own("""
child = started("sleep", "77")
assert not descendants.is_stopped(child.pid)
os.kill(child.pid, signal.SIGSTOP)
until(lambda: descendants.is_stopped(child.pid))
assert descendants.sweep(5).alive == ()
assert descendants.is_stopped(child.pid)
""")
