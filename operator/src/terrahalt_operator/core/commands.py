"""A task's spec as the commands that its agent gets. Pure; called by `decide`."""

from __future__ import annotations

from terrahalt_operator.core import model
from terrahalt_operator.core.model import Snapshot, SourceSpec, TaskSpec
from terrahalt_protocol.messages import (
    Backend,
    Cancel,
    CancelMode,
    CancelReason,
    ConfigFrom,
    EnvFrom,
    GitSource,
    Source,
    Start,
    TaskRef,
)


def start(snapshot: Snapshot, run_id: str) -> Start:
    task, spec = snapshot.task, snapshot.task.spec
    backend = _backend(spec)
    return Start(
        epoch=snapshot.epoch,
        run_id=run_id,
        task=TaskRef(namespace=task.namespace, name=task.name, uid=task.uid),
        action=spec.action,
        workspace=spec.workspace,
        source=Source() if backend else _source(spec.source),
        backend=backend,
        variables=spec.variables,
        env_from=tuple(
            EnvFrom(
                secret=e.secret_ref.name if e.secret_ref else None,
                config_map=e.config_map_ref.name if e.config_map_ref else None,
                prefix=e.prefix,
                optional=any(ref.optional for ref in (e.secret_ref, e.config_map_ref) if ref),
            )
            for e in spec.env_from
        ),
        timeout_s=spec.timeout_seconds,
        no_output_timeout_s=spec.no_output_timeout_seconds,
        init_timeout_s=spec.init_timeout_seconds,
        lock_timeout_s=spec.options.lock_timeout_seconds,
        cancel_grace_s=spec.cancel_grace_seconds,
        report_key=snapshot.report_key,
    )


def _backend(spec: TaskSpec) -> Backend | None:
    """None where every agent does it by itself."""
    if spec.backend.is_default:
        return None
    return Backend(
        type=spec.backend.type,
        config=spec.backend.config,
        config_from=tuple(
            ConfigFrom(
                secret=c.secret_ref.name if c.secret_ref else None,
                config_map=c.config_map_ref.name if c.config_map_ref else None,
                optional=any(ref.optional for ref in (c.secret_ref, c.config_map_ref) if ref),
            )
            for c in spec.backend.config_from
        ),
        source=_source(spec.source),
    )


def _source(spec: SourceSpec) -> Source:
    config_map, git = spec.config_map_ref, spec.git
    return Source(
        inline=spec.inline,
        config_map=config_map.name if config_map else None,
        git=GitSource(url=git.url, ref=git.ref, path=git.path) if git else None,
    )


def supersede(snapshot: Snapshot, run_id: str, by: str) -> Cancel:
    """Only for an agent that knows `superseded_by`."""
    return Cancel(
        epoch=snapshot.epoch,
        run_id=run_id,
        reason=CancelReason.USER,
        grace_s=snapshot.task.spec.cancel_grace_seconds,
        report_key=snapshot.report_key,
        superseded_by=by,
    )


def cancel(snapshot: Snapshot, run_id: str, *, is_hurried: bool = False) -> Cancel:
    """`is_hurried`: its pod goes, and leaves no time for more than Force."""
    spec = snapshot.task.spec
    if spec.cancel:
        reason = CancelReason.USER
    else:
        reason = CancelReason.DELETION if snapshot.task.is_deleting else CancelReason.POD_TERMINATION
    is_graceful = spec.cancel_mode is model.CancelMode.GRACEFUL and not is_hurried
    return Cancel(
        epoch=snapshot.epoch,
        run_id=run_id,
        reason=reason,
        # What is given up is still to be ended as fast as an agent can.
        mode=CancelMode.GRACEFUL if is_graceful else CancelMode.FORCE,
        grace_s=spec.cancel_grace_seconds,
        report_key=snapshot.report_key,
    )
