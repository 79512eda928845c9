"""Which engine the suites run with: terraform, or with ENGINE=tofu in the environment OpenTofu."""

from __future__ import annotations

import os

NAME = os.environ.get("ENGINE") or "terraform"
"""What its program is called."""
_TYPES = {"terraform": "Terraform", "tofu": "OpenTofu"}
if NAME not in _TYPES:
    raise SystemExit(f"ENGINE is {NAME!r}, it must be one of {', '.join(_TYPES)}")
TYPE = _TYPES[NAME]
"""What a pool calls it, and what it calls itself."""
(OTHER_TYPE,) = set(_TYPES.values()) - {TYPE}
"""For what both do side by side."""
