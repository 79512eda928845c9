"""`make bench`: what the product's promises cost and bring, measured as ratios within one run.

    python -m tests.bench [--rounds N] [--starts N] [--handovers N] [--plans N] [--applies N] [--runs N] [--sockets N]
                          [--only NAME]... [--write FILE] [--json FILE]

Machines differ, and so a figure means something only beside another one of the same run. What a part has to show
all the same (`limits`) it says, met or missed; where it was missed, the bench fails, once all is measured and shown.
Parts: `floor`, `agent`, `cancel`, `start`, `hand-over`, `throughput`, `cost` and `sockets`, each a module that gives a
`Part`; `agent` has aims beside its figures, by which nothing fails.
Some run processes of their own (`-m tests.bench...`), which find the packages by this file too.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

for _package in ("protocol", "operator", "agent_image"):
    if (_source := str(PROJECT / _package / "src")) not in sys.path:
        sys.path.insert(0, _source)
