"""The operator's errors, by what the caller does about them.

OperatorError
├── ClusterError             the API server said no, or nothing
│   ├── Unreachable          try again later (back-off)
│   ├── Conflict             the object changed: read it again, decide again
│   ├── AlreadyExists        somebody was first: look who
│   ├── NotFound             it is gone: decide without it
│   ├── Refused              a person has to change something (permissions, schema)
│   └── Deposed              nothing was asked: this operator does not lead, so it writes and commands nothing
└── AgentUntrusted           what answered at an agent's address is not that agent
"""


class OperatorError(Exception):
    """Every error that this package raises on purpose."""


class ClusterError(OperatorError):
    pass


class Unreachable(ClusterError):
    pass


class Conflict(ClusterError):
    pass


class AlreadyExists(ClusterError):
    pass


class NotFound(ClusterError):
    pass


class Refused(ClusterError):
    pass


class Deposed(ClusterError):
    pass


class AgentUntrusted(OperatorError):
    pass
