"""The command line and the environment of each terraform process.

The container's environment goes through (workload identity, proxies and private CAs come that way),
minus what would change how terraform runs here; nothing of ours goes into it but what is named below.
No secret is ever on a command line. Called by `driver` (command lines) and `workdir` (environment);
pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from terrahalt_protocol.messages import Action, Step

_DENIED = frozenset({"TF_REATTACH_PROVIDERS", "TF_WORKSPACE", "TF_DATA_DIR"})
_INPUT = "TF_VAR_"
_DENIED_PREFIXES = ("TF_CLI_ARGS", "TF_LOG", "TOFU_X_", "LD_", "TERRAHALT_")


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one run; only `module` is terraform's working directory."""

    module: str
    home: str
    variables: str
    backend: str
    """Settings of the backend, where the task gives some."""
    cli_config: str
    """Empty: the engine gets none of ours."""
    plugins: str
    """The run's own plugin cache; empty: it has none."""
    plan: str
    logs: str


def argv(
    engine: str, step: Step, action: Action, paths: Paths, backend_args: Sequence[str], *, lock_timeout_s: int
) -> list[str]:
    match step:
        case Step.INIT:
            return [engine, "init", "-input=false", "-json", *backend_args]
        case Step.PLAN:
            destroy = ["-destroy"] if action is Action.DESTROY else []
            return [
                engine,
                "plan",
                "-input=false",
                f"-lock-timeout={lock_timeout_s}s",
                "-json",
                *destroy,
                f"-var-file={paths.variables}",
                f"-out={paths.plan}",
            ]
        case Step.APPLY:
            return [engine, "apply", "-input=false", f"-lock-timeout={lock_timeout_s}s", "-json", paths.plan]
        case _:
            raise ValueError(f"step {step} has no process")


def environment(
    container: Mapping[str, str],
    env_from: Mapping[str, str],
    *,
    run_id: str,
    home: str,
    providers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What terraform gets: later ones win, in the order container, envFrom, ours. `providers`: where it finds them."""
    ours = {
        "USER": run_id,  # where the image has no name for our uid, the lock's Who is USER@hostname
        "HOME": home,
        "TF_IN_AUTOMATION": "1",
        "TF_INPUT": "0",
        "CHECKPOINT_DISABLE": "1",
        **(providers or {}),
    }
    merged = {**container, **env_from}
    return {name: value for name, value in merged.items() if not _is_denied(name)} | ours


def as_planned(env: Mapping[str, str], planned: Mapping[str, str], *, engine: str) -> dict[str, str]:
    """What the apply of a plan gets that was made with `planned`. A plan holds terraform's input variables: terraform
    ignores other values for them (and takes an ephemeral one, which is in no plan), tofu refuses to apply."""
    if engine != "tofu":
        return dict(env)
    inputs = {name: value for name, value in planned.items() if name.startswith(_INPUT)}
    return {name: value for name, value in env.items() if not name.startswith(_INPUT)} | inputs


def _is_denied(name: str) -> bool:
    return name in _DENIED or name.startswith(_DENIED_PREFIXES)
