"""The state beside a run: copied before an apply; afterwards its lock, what could not be saved, and what can't be read.

Answers within `Times`, whatever the backend does, and never raises: what is not known is said to be so.
Decides nothing. Called by `driver`.
"""

from __future__ import annotations

import asyncio
import logging

from terrahalt_agent.adapters.cluster_api import ApiError, UnreachableError
from terrahalt_agent.adapters.kubernetes_backend import StateFullError
from terrahalt_agent.adapters.secret_parts import TooLargeError
from terrahalt_agent.adapters.state_copies import StateCopies
from terrahalt_agent.adapters.workdir import ERRORED_STATE, compressed, errored_state
from terrahalt_agent.core.events import AftermathChecked, ErroredState, StateKept, TornState
from terrahalt_agent.core.instructions import CheckAftermath
from terrahalt_agent.core.ladder import Times
from terrahalt_agent.execution import Execution
from terrahalt_protocol.messages import Lock, LockCondition

_AGAIN_S = 2.0
_RELEASED = Lock(condition=LockCondition.RELEASED)
_log = logging.getLogger(__name__)


class Aftermath:
    def __init__(self, copies: StateCopies | None, times: Times) -> None:
        """`copies`: None outside of a cluster."""
        self._copies = copies
        self._times = times

    async def keep_state(self, of: Execution) -> StateKept:
        assert of.backend is not None
        try:
            async with asyncio.timeout(self._times.keep_state_s):
                return StateKept(warning=await of.backend.keep_state(of.start))
        except TooLargeError as error:
            return StateKept(warning=f"the state was not copied before the apply: {error}")
        except StateFullError as error:
            return StateKept(str(error))
        except Exception as error:
            return StateKept(f"its state could not be copied before it: {str(error) or repr(error)}")

    async def has_lock(self, of: Execution, within_s: float) -> bool:
        """Whether terraform, which stands still, is seen to hold the state's lock."""
        if of.backend is None or not of.backend.frees_locks:
            return False
        return (await self._look(of, within_s)).condition is LockCondition.HELD

    @staticmethod
    def has_little_to_say(of: Execution, check: CheckAftermath) -> bool:
        """Nothing but one look, most likely: the log of the run is complete before."""
        is_short = not (check.may_hold_lock or check.reads_state or check.again_after_s is not None)
        return is_short and (of.prepared is None or errored_state(of.prepared.paths) is None)

    async def check(self, of: Execution, check: CheckAftermath) -> AftermathChecked:
        # First what may have to wait for the API server: the lock could not be looked at, or released, meanwhile.
        errored = await self._keep_errored_state(of)
        lock = await self._lock(of, check)
        return AftermathChecked(lock, errored, await self._torn_state(of) if check.reads_state else None)

    async def _lock(self, of: Execution, check: CheckAftermath) -> Lock:
        if of.backend is None or not (check.may_hold_lock or of.backend.frees_locks):
            return _RELEASED
        within_s = self._times.ask_s + self._times.sweep_s
        lock = await self._look(of, within_s)
        if lock.condition is LockCondition.RELEASED and of.backend.grants_late and check.again_after_s is not None:
            await asyncio.sleep(check.again_after_s)
            lock = await self._look(of, within_s)
        if lock.condition is LockCondition.HELD and of.backend.frees_locks:
            await self._release(of, lock)
            lock = await self._look(of, within_s)  # an answer may be lost, a person may be quicker
        return lock

    async def _look(self, of: Execution, within_s: float) -> Lock:
        assert of.backend is not None
        try:
            async with asyncio.timeout(within_s):
                return await of.backend.lock(of.start.workspace, of.start.run_id, of.begun_at)
        except Exception as error:
            _log.warning("run %s: the state's lock could not be looked at: %r", of.start.run_id, error)
            return Lock(condition=LockCondition.UNKNOWN, command=of.backend.lock_command(of.start.workspace))

    async def _release(self, of: Execution, lock: Lock) -> None:
        """Terraform is reaped, nothing of the run is alive, and the lock is its own."""
        assert of.backend is not None
        try:
            async with asyncio.timeout(self._times.aftermath_s / 4):
                await of.backend.release(of.start.workspace, lock.id)
        except Exception as error:
            _log.warning("run %s: the lock %s that it left is not released: %s", of.start.run_id, lock.id, error)
        else:
            _log.info("run %s: the lock %s that it left is released", of.start.run_id, lock.id)

    async def _torn_state(self, of: Execution) -> TornState | None:
        assert of.backend is not None
        try:
            async with asyncio.timeout(self._times.aftermath_s / 4):
                return await of.backend.torn_state(of.start.workspace)
        except Exception as error:
            _log.warning("run %s: the state could not be read: %r", of.start.run_id, error)
            return None

    async def _keep_errored_state(self, of: Execution) -> ErroredState | None:
        """Tries until it is kept, or can't be: what stopped terraform from saving it may stop this too, for a while."""
        left = errored_state(of.prepared.paths) if of.prepared is not None else None
        if left is None:
            return None
        if self._copies is None:
            return ErroredState(left, problem="there is no cluster")
        until_s = asyncio.get_running_loop().time() + self._times.keep_errored_s
        name = f"terrahalt-errored-state-{of.start.run_id.lower()}"
        while True:
            try:
                await self._copies.keep(name, "errored", await asyncio.to_thread(compressed, left), of.start)
                return ErroredState(left, await self._copies.fetch_command(name, ERRORED_STATE))
            except (ApiError, TooLargeError, OSError) as error:
                if not isinstance(error, UnreachableError) or asyncio.get_running_loop().time() > until_s:
                    return ErroredState(left, problem=str(error))
                _log.warning("run %s: %s can't be kept yet: %s", of.start.run_id, left, error)
            await asyncio.sleep(_AGAIN_S)
