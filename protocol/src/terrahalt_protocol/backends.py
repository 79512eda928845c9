"""Which backends a state can be in, and what a person types where one of them keeps a lock.

Here because both sides say it: the agent after a run, the operator where the agent was lost. Knows names
and words only: whether a lock is held is looked at by `terrahalt_agent.adapters.backend`. Pure.
"""

from __future__ import annotations

KUBERNETES = "kubernetes"
OTHERS = ("azurerm", "consul", "cos", "gcs", "http", "oci", "oss", "pg", "s3")
NAMES = tuple(sorted((KUBERNETES, *OTHERS)))
RUN_ELSEWHERE = ("cloud", "remote")
"""terraform would only watch there what runs on somebody else's machine."""
WITHOUT_WORKSPACES = frozenset({"http"})
"""They hold one state, and refuse any terraform workspace but `default`."""


def unlock_command(type_: str, workspace: str, *, lock_id: str = "", engine: str = "terraform") -> str:
    """One line for a shell, whose comment says where; for any backend but kubernetes, which is looked at with kubectl.

    An empty `lock_id` is not known."""
    prefix = "" if type_ in WITHOUT_WORKSPACES else f"TF_WORKSPACE={workspace} "
    where = f"in the task's source, after {engine} init with its backend"
    if type_ == "http":
        why = "the http backend ignores the ID and removes anybody's lock: see first that nobody is at work"
    elif lock_id:
        why = "it removes this lock only"
    else:
        why = f"ID is what {engine} plan says there; no such error: the lock is free"
    return f"{prefix}{engine} force-unlock {lock_id or 'ID'}  # {where}; {why}"
