"""`python -m tests.mutations`: tries what `guards.txt` names, prints a table, and fails where a guard is not missed.

Run by the Makefile with the venv's Python.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mutations.catalogue import read
from tests.mutations.judge import Tried, Verdict, a_judge

ROOT = Path(__file__).resolve().parents[2]
GUARDS = Path(__file__).with_name("guards.txt")


def main(words: list[str]) -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.mutations", description="takes guards out in turn")
    arguments.add_argument("--only", action="append", help="those whose name holds these words; may be given again")
    arguments.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="at once (number of cores)")
    arguments.add_argument("--json", type=Path, help="a file for the table")
    chosen = arguments.parse_args(words)
    named = read(GUARDS.read_text(encoding="utf-8"))
    mutations = [m for m in named if not chosen.only or any(word in m.what for word in chosen.only)]
    if chosen.jobs < 1 or not mutations:
        arguments.error("no such guard" if not mutations else "at least one job is needed")
    began = time.monotonic()
    tried: list[Tried] = []
    with a_judge(ROOT, chosen.jobs) as judge:
        if failing := judge.as_it_is(test for mutation in mutations for test in mutation.tests):
            print(f"the tests fail before anything is taken out:\n{failing}", file=sys.stderr)
            return 1
        for each in judge.try_all(mutations, chosen.jobs):
            tried.append(each)
            print(as_line(each), flush=True)
    counts = Counter(each.verdict for each in tried)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    print(f"\n{len(tried)} guards taken out: {said}; {time.monotonic() - began:.0f} s")
    if chosen.json:
        found = [{"what": each.mutation.what, "verdict": each.verdict, "by": each.by} for each in tried]
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if counts[Verdict.KILLED] == len(tried) else 1


def as_line(tried: Tried) -> str:
    return f"{tried.verdict:<8} {tried.took_s:5.1f} s  {tried.mutation.what}  {tried.by.rpartition('/')[2]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
