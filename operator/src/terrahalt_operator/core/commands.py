"""A task's spec as the commands that its agent gets. Pure; called by `decide`."""

from __future__ import annotations

from terrahalt_operator.core import model
from terrahalt_operator.core.model import (
    ArchiveSpec,
    ConfigFromSpec,
    EnvFromSpec,
    GitSpec,
    OutputsToSpec,
    Reference,
    Snapshot,
    SourceSpec,
    Task,
    TaskSpec,
)
from terrahalt_operator.core.status import seconds
from terrahalt_protocol.messages import (
    Approval,
    ApprovedPlan,
    ArchiveSource,
    Backend,
    Cancel,
    CancelMode,
    CancelReason,
    ConfigFrom,
    EnvFrom,
    GitSource,
    OutputsTo,
    PlanSummary,
    Source,
    Start,
    TaskRef,
    Values,
)


def start(snapshot: Snapshot, run_id: str) -> Start:
    task, spec = snapshot.task, snapshot.task.spec
    # Whatever an agent is too old to know has the source inside, and it starts nothing.
    values = _values(spec)
    approval = _approval(task, Source() if values else _source(spec.source))
    backend = _backend(spec, Source() if values or approval else _source(spec.source))
    return Start(
        epoch=snapshot.epoch,
        run_id=run_id,
        task=TaskRef(namespace=task.namespace, name=task.name, uid=task.uid),
        action=spec.action,
        workspace=spec.workspace,
        source=Source() if backend or approval or values else _source(spec.source),
        backend=backend,
        approval=approval,
        values=values,
        variables=spec.variables,
        # Later ones win.
        env_from=tuple(_env_from(e) for e in (*(snapshot.pool_env_from or ()), *spec.env_from)),
        timeout_s=_timeout_s(task),
        no_output_timeout_s=spec.no_output_timeout_seconds,
        init_timeout_s=spec.init_timeout_seconds,
        lock_timeout_s=spec.options.lock_timeout_seconds,
        cancel_grace_s=spec.cancel_grace_seconds,
        report_key=snapshot.report_key,
    )


def _env_from(spec: EnvFromSpec) -> EnvFrom:
    return EnvFrom(
        secret=spec.secret_ref.name if spec.secret_ref else None,
        config_map=spec.config_map_ref.name if spec.config_map_ref else None,
        prefix=spec.prefix,
        optional=any(ref.optional for ref in (spec.secret_ref, spec.config_map_ref) if ref),
    )


def _values(spec: TaskSpec) -> Values | None:
    if not (spec.variables_from or spec.outputs_to):
        return None
    return Values(
        source=_source(spec.source),
        variables_from=tuple(map(_config_from, spec.variables_from)),
        outputs_to=_outputs_to(spec.outputs_to) if spec.outputs_to else None,
    )


def _outputs_to(spec: OutputsToSpec) -> OutputsTo:
    return OutputsTo(secret=spec.secret_name, include_sensitive=spec.include_sensitive, retain=spec.retain)


def _approval(task: Task, source: Source) -> Approval | None:
    """Once a plan is on record, only that may be applied, and by what its digest is in the words of a person."""
    if not task.spec.needs_approval:
        return None
    kept, plan = task.kept_plan, None
    if kept is not None:
        summary = PlanSummary(add=kept.add, change=kept.change, destroy=kept.destroy)
        plan = ApprovedPlan(run_id=kept.run_id, digest=task.spec.approved_plan_digest, summary=summary)
    return Approval(source=source, plan=plan)


def _timeout_s(task: Task) -> int:
    """What is left of it, where an earlier run has made the plan; waiting in between does not count."""
    if (kept := task.kept_plan) is None or not task.status.started_at:
        return task.spec.timeout_seconds
    used_s = seconds(kept.ready_at) - seconds(task.status.started_at)
    return max(1, task.spec.timeout_seconds - round(used_s))


def _backend(spec: TaskSpec, source: Source) -> Backend | None:
    """None where every agent does it by itself."""
    if spec.backend.is_default:
        return None
    return Backend(
        type=spec.backend.type,
        config=spec.backend.config,
        config_from=tuple(map(_config_from, spec.backend.config_from)),
        source=source,
    )


def _config_from(spec: ConfigFromSpec) -> ConfigFrom:
    return ConfigFrom(
        secret=spec.secret_ref.name if spec.secret_ref else None,
        config_map=spec.config_map_ref.name if spec.config_map_ref else None,
        optional=any(ref.optional for ref in (spec.secret_ref, spec.config_map_ref) if ref),
    )


def _source(spec: SourceSpec) -> Source:
    config_map, git = spec.config_map_ref, _repository(spec.git) if spec.git else None
    is_plain = git is not None and git.is_plain
    return Source(
        inline=spec.inline,
        config_map=config_map.name if config_map else None,
        git=git if is_plain else None,
        private_git=None if is_plain else git,
        archive=_archive(spec.archive) if spec.archive else None,
    )


def _repository(spec: GitSpec) -> GitSource:
    return GitSource(
        url=spec.url,
        ref=spec.ref,
        path=spec.path,
        secret=_name(spec.secret_ref),
        authority=_config_from(spec.ca_ref) if spec.ca_ref else None,
        submodules=spec.submodules,
    )


def _archive(spec: ArchiveSpec) -> ArchiveSource:
    return ArchiveSource(
        url=spec.url,
        sha256=spec.sha256,
        path=spec.path,
        secret=_name(spec.secret_ref),
        authority=_config_from(spec.ca_ref) if spec.ca_ref else None,
    )


def _name(ref: Reference | None) -> str:
    return ref.name if ref else ""


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
