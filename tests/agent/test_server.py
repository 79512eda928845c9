"""What the agent's server says to whom; real sockets are in tests/agent_terraform."""

from __future__ import annotations

from typing import Any, cast

from terrahalt_agent.adapters.server import Server, _Connection
from terrahalt_protocol.messages import Hello, Report, Step

HELLO = Hello(protocol_version=1, agent_version="0", namespace="team-a", pod_name="pod", pod_uid="uid", boot_id="boot")
REPORT = Report(run_id="01JRUN", task_uid="task-uid", boot_id="boot", sequence=1, step=Step.PLAN)


def test_who_has_just_connected_hears_nothing_before_hello() -> None:
    """terraform's log is read right before an event: it may have a report for everybody before Hello is there."""
    server = Server(lambda event: None, lambda: (b"", "text/plain"))
    connection = server._connections[1] = _Connection(cast(Any, None), None, "peer")
    server.send_to_all(REPORT)
    server.send(1, HELLO)
    server.send_to_all(REPORT)
    said = [connection.frames.get_nowait() for _ in range(connection.frames.qsize())]
    assert ['"type":"Hello"' in frame for frame in said] == [True, False]
