"""The errors of the cluster tool.

ClusterError             something is missing or failed; its text says what to do, no traceback needed
+-- CommandFailed        a program that we ran ended badly; has the path and the tail of its log

Every other exception is a fault of the tool.
"""

from __future__ import annotations

from pathlib import Path


class ClusterError(Exception):
    """What failed, on which object, what to do: in lower case, complete enough to be all that is printed."""


class CommandFailed(ClusterError):
    def __init__(self, argv: list[str], status: int | str, log: Path | None, tail: str) -> None:
        self.argv, self.status, self.log, self.tail = argv, status, log, tail
        where = f"; whole log: {log}" if log else ""
        shown = "\n".join("    " + line for line in tail.splitlines())
        super().__init__(f"`{' '.join(argv)}` ended with {status}{where}\n{shown}".rstrip())
