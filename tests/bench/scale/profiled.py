"""`python -m tests.bench.scale.profiled FILE`: the operator under cProfile, its main thread and kopf's.

The figures of such a process are not those of one without. Run by `operator_process`; FILE is written when it ends,
and kopf's thread to FILE.kopf.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
from io import StringIO
from pathlib import Path
from typing import NoReturn

SHOWN = 30


def main() -> None:
    path = sys.argv[1]
    from terrahalt_operator import app
    from terrahalt_operator.adapters.watch import Watch

    profile, kopfs, leave, run = cProfile.Profile(), cProfile.Profile(), os._exit, Watch._run

    def end(status: int) -> NoReturn:
        profile.disable()
        profile.dump_stats(path)
        leave(status)

    def watch(self: Watch) -> None:
        try:
            kopfs.runcall(run, self)
        finally:
            kopfs.dump_stats(f"{path}.kopf")

    os._exit = end
    # From Python 3.12 on there is one profiler in a process.
    if sys.version_info < (3, 12):
        Watch._run = watch  # type: ignore[method-assign]
    profile.enable()
    app.main()


def told(path: Path) -> str:
    """Where the time went, of both threads: the functions that took most by themselves, and with what they called."""
    out = StringIO()
    for name in (path, Path(f"{path}.kopf")):
        if name.exists():
            out.write(f"\n-- {name}\n")
            stats = pstats.Stats(str(name), stream=out).strip_dirs()
            for order in ("tottime", "cumulative"):
                stats.sort_stats(order).print_stats(SHOWN)
    return out.getvalue()


if __name__ == "__main__":
    main()
