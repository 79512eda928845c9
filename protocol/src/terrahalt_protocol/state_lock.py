"""The lock of a state in terraform's kubernetes backend: a Lease, and what a person types about it.

Both sides tell a person the same; the agent releases its own run's lock by the same patch. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_INFO = "app.terraform.io/lock-info"


def state_suffix(workspace: str) -> str:
    """terraform refuses suffixes that end in `-<number>`, which a workspace's name may."""
    return f"{workspace}-tf"


def lease_name(workspace: str) -> str:
    """Of the Lease by which terraform's kubernetes backend locks the state of its workspace `default`."""
    return f"lock-tfstate-default-{state_suffix(workspace)}"


def holder(lease: Mapping[str, Any]) -> str:
    """The ID of the lock; empty: nobody holds it."""
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def info(lease: Mapping[str, Any]) -> dict[str, Any]:
    """What terraform wrote about the holder: `Who` is USER@hostname, `Created` a time; empty where it can't be read."""
    text = ((lease.get("metadata") or {}).get("annotations") or {}).get(_INFO) or ""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def release_patch(lock_id: str) -> list[dict[str, str]]:
    """As JSON patch; changes nothing if somebody else holds it by then."""
    path = "/spec/holderIdentity"
    return [{"op": "test", "path": path, "value": lock_id}, {"op": "remove", "path": path}]


def release_command(namespace: str, workspace: str, lock_id: str) -> str:
    text = msgspec.json.encode(release_patch(lock_id)).decode()
    return f"kubectl -n {namespace} patch lease {lease_name(workspace)} --type=json -p '{text}'"


def look_command(namespace: str, workspace: str) -> str:
    return f"kubectl -n {namespace} get lease {lease_name(workspace)} -o yaml"
