"""The pod's own log: everything that `kubectl logs` shows goes through here, redacted.

A thread writes; a reader of the log that stalls fills the queue, never the event loop: what does not
fit is dropped, and how much is said once there is room. What is shown of a run is also remembered, to be kept when
the pod is gone. Called by `driver` and by `logging`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque

from terrahalt_agent.core.kept_log import KeptLog
from terrahalt_agent.core.redaction import Redactor
from terrahalt_agent.core.terraform_log import MAX_TEXT_CHARS, printable

MAX_WAITING_CHARS = 16 * 1024 * 1024


class PodLog:
    def __init__(self, redactor: Redactor, fd: int = 1) -> None:
        self._redactor = redactor
        self._fd = fd
        self._waiting: deque[str] = deque()
        self._waiting_chars = 0
        self._dropped = 0
        self.given = 0
        """Lines since the process began, those that were dropped too."""
        self._changed = threading.Condition()
        self._is_writing = False
        self._kept = KeptLog()
        self._kept_lock = threading.Lock()
        threading.Thread(target=self._write_all, name="pod-log", daemon=True).start()

    def line(self, text: str) -> None:
        """Never blocks, and never raises."""
        text = text[: MAX_TEXT_CHARS + self._redactor.longest_chars + 1]  # more is never shown
        with self._changed:
            self.given += 1
            if self._waiting_chars + len(text) > MAX_WAITING_CHARS:
                self._dropped += 1
                return
            self._waiting.append(text)
            self._waiting_chars += len(text)
            self._changed.notify_all()

    def pass_over(self, count: int) -> None:
        """So many lines were not even given to it; that is said with the next one that is."""
        with self._changed:
            self._dropped += count

    def begin(self) -> None:
        """A run's log begins."""
        with self._kept_lock:
            self._kept.begin()

    def packed(self) -> bytes:
        """What is kept of the run's log until now: lines that nobody reads are kept all the same. Blocks, for some tens
        of milliseconds where none of these wait."""
        with self._changed:
            waiting = list(self._waiting)
        with self._kept_lock:
            kept = self._kept.copy() if waiting else self._kept  # the writer adds them once more
            for text in waiting:
                kept.add(self._shown(text).encode(errors="replace"))
            return kept.packed()

    def flush(self, within_s: float) -> bool:
        """Whether all was written."""
        until_s = time.monotonic() + within_s
        with self._changed:
            while (self._waiting or self._is_writing) and (left_s := until_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return not self._waiting and not self._is_writing

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                texts, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._waiting_chars, self._dropped, self._is_writing = 0, 0, True
            if dropped:
                texts.append(f"terrahalt: {dropped} lines were dropped, they came faster than this log was read")
            lines = [self._shown(text).encode(errors="replace") for text in texts]
            with self._kept_lock:
                for line in lines:
                    self._kept.add(line)
            self._write(b"".join(lines))

    def _shown(self, text: str) -> str:
        return printable(self._redactor.redact_beginning(text, MAX_TEXT_CHARS).replace("\n", " ")) + "\n"

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except OSError:
                return  # nobody reads this log any more; the run goes on


class PodLogHandler(logging.Handler):
    """The agent's own lines: "terrahalt: run 01J...: terraform init"."""

    def __init__(self, pod_log: PodLog) -> None:
        super().__init__()
        self._pod_log = pod_log
        self.setFormatter(logging.Formatter("terrahalt: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        for text in self.format(record).splitlines():
            self._pod_log.line(text)
