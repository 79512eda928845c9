"""kstatus, by which Helm, Flux and others wait for objects that they do not know: the real library, which is Go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.cluster import golang
from tests.cluster.progress import program_of

SOURCE = Path(__file__).parent / "reader"


def readings(objects: Iterable[dict[str, Any]]) -> list[str]:
    """What it says of each: InProgress, Current, Failed or Terminating."""
    program = program_of(golang.compiled("kstatus-reader", SOURCE, cold="20 s"))
    lines = "".join(f"{json.dumps(each)}\n" for each in objects)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
