"""What agents have to have been told, once who leads has heard all there is and has done all that it wants to do.

It asks for what was sent or obeyed at some time, however often it got lost before: only after a round in which nothing
goes wrong is that certain. Called by `simulation` after each.
"""

from __future__ import annotations

from terrahalt_operator.core.status import seconds
from terrahalt_protocol import budget
from terrahalt_protocol.messages import Ack, Cancel, CancelMode, Command
from tests.simulation.api_server import Json
from tests.simulation.judge import Judge, Violation
from tests.simulation.operators import Life
from tests.simulation.pods import Connection

_FORCED = f'"mode":"{CancelMode.FORCE}"'


def check(judge: Judge, life: Life, now: float) -> None:
    for uid, connection in life.sockets.connections.items():
        if uid in life.sockets._connections and connection.is_open_at_agent and not connection.pod.is_cut_off:
            _check_urgency(judge, life, connection, now)
            _check_end(judge, life, connection)


def _check_urgency(judge: Judge, life: Life, connection: Connection, now: float) -> None:
    pod = connection.pod
    for run_id in pod.live_runs:
        task = judge.tasks[judge.runs[run_id].task_uid]
        if task.is_gone or task.is_abandoned or (pod.uid, run_id) in judge.forced:
            continue
        why = f"{task.name} is to end by Force" if task.asks_force else ""
        if _is_short_of_time(judge.object_of(pod), now) and life.name not in judge.ahead_s:
            why = f"its pod {pod.name} is about to be killed"
        if why and not _is_under_way(connection, Cancel, run_id, _FORCED):
            raise Violation(f"5: {run_id} was not told to hurry by {life.name}, and {why}")


def _check_end(judge: Judge, life: Life, connection: Connection) -> None:
    told = life.sockets._connections[connection.pod.uid].reports
    for claim in judge.released:
        if claim.run_id not in told or judge.tasks[claim.task_uid].is_abandoned:
            continue
        if claim.run_id in connection.pod.unacknowledged and not _is_under_way(connection, Ack, claim.run_id):
            raise Violation(f"9: {life.name} released the claim of {claim.run_id}, and never acknowledges its end")


def _is_short_of_time(pod: Json | None, now: float) -> bool:
    """There is none left for anything but Force."""
    if pod is None or not pod["metadata"].get("deletionGracePeriodSeconds"):
        return False
    return now >= seconds(pod["metadata"]["deletionTimestamp"]) - budget.FORCE_S


def _is_under_way(connection: Connection, kind: type[Command], run_id: str, how: str = "") -> bool:
    words = (f'"type":"{kind.__name__}"', f'"run_id":"{run_id}"', how)
    return any(all(word in frame for word in words) for frame in connection.to_agent)
