"""The names by which a state, its claim and its lock are found; the same answer on every shard.

Pure. A change here would let two runs work on one state: the tests hold the values fast. Called by
`schedule` and `status`, and by those who read and write claims.
"""

from __future__ import annotations

import hashlib

from terrahalt_protocol.state_lock import state_suffix


def state_identity(namespace: str, workspace: str) -> str:
    """What two tasks share exactly if they work on the same state (kubernetes backend)."""
    return f"kubernetes/{namespace}/{state_suffix(workspace)}"


def claim_name(namespace: str, workspace: str) -> str:
    return "run-" + hashlib.sha256(state_identity(namespace, workspace).encode()).hexdigest()


def label_value(name: str) -> str:
    """A label's value for an object's name: names may have 253 characters, values 63."""
    if len(name) <= 63:
        return name
    return name[:52].rstrip("-.") + "-" + hashlib.sha256(name.encode()).hexdigest()[:10]
