"""What the log of one terraform process has said so far.

The ladder and the classification rest on these facts, and on nothing that terraform is only believed
to do. One per process; `run` feeds each line once, in order. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from terrahalt_agent.core.terraform_log import LOCK_REFUSED, Diagnostic, Line, lock_holder, place, printable
from terrahalt_protocol.messages import PlanSummary

_OPENS = {
    "apply_start": "apply",
    "refresh_start": "refresh",
    "ephemeral_op_start": "ephemeral",
    "ephemeral_action_started": "ephemeral",  # as OpenTofu calls it
}
_FIRST_HOOKS = frozenset({*_OPENS, "provision_start"})
_CLOSES = {
    "apply_complete": "apply",
    "apply_errored": "apply",
    "refresh_complete": "refresh",
    "ephemeral_op_complete": "ephemeral",
    "ephemeral_op_errored": "ephemeral",
    "ephemeral_action_complete": "ephemeral",
}
_NO_ANSWER = ("Plugin did not respond", "Request cancelled", "Plugin error")
"""Summaries of an error that terraform itself makes where a provider died; the detail names the call."""
_UNLOCK_FAILED = (
    "Error releasing the state lock",
    "You may have to force-unlock this state",
    "error loading state:",
)
"""After an operation; by a backend that has made a workspace; and where a state that was locked can't be read:
terraform then unlocks it, and keeps to itself whether it could."""
_PLAN_REFUSED = (
    "Saved plan is stale",
    "Saved plan does not match the given state",
    "Failed to read plan",  # that of another version of the engine
    "Inconsistent dependency lock file",
    "Provider dependency changes detected",  # init, which may not change the lock file
)
_WORKSPACE_MISSING = re.compile(r'Currently selected workspace ".*" does not exist')
_MAX_PLAIN_LINES = 5
_MAX_ERROR_CHARS = 500


@dataclass(slots=True)
class StreamFacts:
    version_seen: bool = False
    hook_seen: bool = False
    """The graph walk has begun: from here on SIGINT is honoured, before it is lost."""
    mutated: bool = False
    """An operation that changes something was begun."""
    interrupted: bool = False
    twice_interrupted: bool = False
    canceled: bool = False
    """It said "operation canceled": it gives up, and is about to exit."""
    failed: bool = False
    failed_before_interrupt: bool = False
    save_failed: bool = False
    unlock_failed: bool = False
    lock_refused: bool = False
    """The lock could not be had; a request that got no answer may have taken it."""
    lock_holder: str = ""
    """Who has the lock that it has waited for in vain, as far as terraform knows: WHO since WHEN (ID ...)."""
    workspace_missing: bool = False
    plan_refused: bool = False
    """It does not apply this plan: the state has changed since, or this is not what has made it."""
    summary: PlanSummary | None = None
    summary_text: str = ""
    done: int = 0
    begun: int = 0
    """Operations that were begun, reads too."""
    first_error: str = ""
    is_unanswered: bool = False
    """A provider died over a change: nobody knows how much of it was done, and the state does not have it."""
    _errored: dict[str, None] = field(default_factory=dict)
    """Addresses whose change failed, in the order of their end."""
    _explained: set[str] = field(default_factory=set)
    """Addresses that an error names: their provider has answered."""
    _open: dict[tuple[str, str, str], None] = field(default_factory=dict)
    _plain: list[str] = field(default_factory=list)

    def note(self, line: Line) -> None:
        match line.type:
            case "":
                self._plain = [*self._plain, line.message.strip()][-_MAX_PLAIN_LINES:]
            case "version":
                self.version_seen = True
            case "log":
                self._note_interrupt(line.message)
            case "diagnostic" if line.diagnostic is not None:
                self._note_diagnostic(line.diagnostic)
            case "change_summary" if line.changes is not None:
                changes = line.changes
                self.summary = PlanSummary(add=changes.add, change=changes.change, destroy=changes.remove)
                self.summary_text = line.message
            case _ if line.hook is not None:
                self._note_hook(line)

    @property
    def is_idle(self) -> bool:
        """No operation is under way: it reads, saves or unlocks the state, or has not begun."""
        return not self._open

    @property
    def open_addresses(self) -> tuple[str, ...]:
        """Resources whose change was begun and has not ended, in the order of their begin."""
        return tuple(dict.fromkeys(address for kind, address, action in self._open if _changes(kind, action)))

    @property
    def unanswered_addresses(self) -> tuple[str, ...]:
        """Resources whose provider died over their change. The error of that has no address of its own."""
        return tuple(address for address in self._errored if self.is_unanswered and address not in self._explained)

    @property
    def error_text(self) -> str:
        """What a person needs first of a failure; at most 500 characters."""
        text = printable(self.first_error or " ".join(text for text in self._plain if text))
        return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 3] + "..."

    def _note_interrupt(self, message: str) -> None:
        # The second is told before anything is stopped. The first has another writer, and may come after
        # the error of what was stopped.
        if "Interrupt received" in message or "Stopping operation" in message:
            self.interrupted = True
        if "Two interrupts received" in message:
            self.twice_interrupted = True

    def _note_diagnostic(self, diagnostic: Diagnostic) -> None:
        if diagnostic.severity != "error":
            return
        summary = " ".join(diagnostic.summary.split())
        self.lock_holder = self.lock_holder or lock_holder(diagnostic)
        if self.lock_holder:
            # SIGINT ends the wait with this error too, and its two writers keep no order.
            self.failed = True
        else:
            self._note_error()
        self.canceled = self.canceled or summary == "operation canceled"
        self.save_failed = self.save_failed or "Failed to save state" in summary
        text = f"{summary} {diagnostic.detail}"
        self.unlock_failed = self.unlock_failed or any(words in text for words in _UNLOCK_FAILED)
        self.workspace_missing = self.workspace_missing or bool(_WORKSPACE_MISSING.fullmatch(summary))
        self.lock_refused = self.lock_refused or summary == LOCK_REFUSED
        self.plan_refused = self.plan_refused or summary.startswith(_PLAN_REFUSED)
        where, detail = place(diagnostic), " ".join(diagnostic.detail.split())
        self.is_unanswered = self.is_unanswered or (summary in _NO_ANSWER and "ApplyResourceChange" in detail)
        # terraform tells the errors of a walk in any order; the resource that failed first is the cause.
        is_cause = diagnostic.address in list(self._errored)[:1] and diagnostic.address not in self._explained
        if is_cause or not self.first_error:
            self.first_error = summary + (f" ({where})" if where else "") + (f": {detail}" if detail else "")
        self._explained.add(diagnostic.address)

    def _note_error(self) -> None:
        self.failed = True
        self.failed_before_interrupt = self.failed_before_interrupt or not self.interrupted

    def _note_hook(self, line: Line) -> None:
        assert line.hook is not None
        self.hook_seen = self.hook_seen or line.type in _FIRST_HOOKS
        address, action = line.hook.resource.addr, line.hook.action
        if kind := _OPENS.get(line.type):
            self._open[kind, address, action] = None
            self.begun += 1
            self.mutated = self.mutated or _changes(kind, action)
        elif kind := _CLOSES.get(line.type):
            self._open.pop((kind, address, action), None)
            if line.type == "apply_complete" and _changes(kind, action):
                self.done += 1
        if line.type == "apply_errored":
            self._note_error()
            self._errored[address] = None


def _changes(kind: str, action: str) -> bool:
    """Data sources are read by `apply_start` too, with action "read"."""
    return kind == "apply" and action != "read"
