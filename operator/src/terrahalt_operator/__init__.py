"""The operator: queues tasks, owns the agents, and alone writes the tasks' status.

`core` decides and is pure; `adapters` carry out and are thin; `app` puts them together.
"""

__version__ = "0.1.0"
