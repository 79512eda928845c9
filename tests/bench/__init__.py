"""`make bench`: what the product's promises cost and bring, measured as ratios within one run.

    python -m tests.bench [--rounds N] [--starts N] [--runs N] [--sockets N] [--only NAME]...
                          [--write FILE] [--json FILE]

Nothing here passes or fails by time: machines differ, and so a figure means something only beside another
one of the same run. By such a ratio `start` fails. Parts: `floor`, `agent`, `cancel`, `start` and `sockets`, each a
module that gives a `Part`; `agent` has aims beside its figures, and says whether they are met.
Some run processes of their own (`-m tests.bench...`), which find the packages by this file too.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

for _package in ("protocol", "operator", "agent_image"):
    if (_source := str(PROJECT / _package / "src")) not in sys.path:
        sys.path.insert(0, _source)
