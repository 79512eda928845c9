"""The final report where the kubelet reads it: it survives in the pod object when the agent is gone.

Sealed, because user code can write there too; a failure to write never ends the agent. Called by
`driver`.
"""

from __future__ import annotations

import logging
import os

from terrahalt_protocol.messages import Report
from terrahalt_protocol.signing import seal

_log = logging.getLogger(__name__)


def clear_final_report(path: str) -> None:
    """It is on record, and the next run's takes its place. Raises OSError."""
    os.truncate(path, 0)


def write_final_report(path: str, report: Report, key: str) -> None:
    """Sealed with the run's key. What can't be written is only logged: the socket tells it too."""
    try:
        sealed = seal(report, key)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, sealed)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        _log.warning("run %s: the final report could not be written to %s: %s", report.run_id, path, error)
