"""The agent as it is, which notes beside that which row of the table has decided its run.

Started by `harness` instead of `terrahalt_agent`: `python -m tests.agent_terraform.recording_agent FILE`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from terrahalt_agent.app import main
from terrahalt_agent.core import classify
from terrahalt_agent.core.classify import Ending, Row


def _recorded(row: Row, file: str) -> Row:
    """Only the row that decides is asked for its reason."""

    def reason(ending: Ending) -> str:
        note = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(note, f"{row.observed}\n".encode())
        os.close(note)
        return row.reason(ending)

    return replace(row, reason=reason)


if __name__ == "__main__":
    classify.ROWS = tuple(_recorded(row, sys.argv[1]) for row in classify.ROWS)
    main()
