"""What the agent is told by its environment; ARCHITECTURE.md has the names that the operator sets.

The rest has defaults for a pod, and exists so that the agent runs outside of one too. Read once, by
`app`; none of it reaches terraform (`core.commands`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terrahalt_protocol import providers
from terrahalt_protocol.providers import Providers

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_ENGINES = {"Terraform": "terraform", "OpenTofu": "tofu"}


class SettingsError(Exception):
    """The pod's environment is wrong; the text says which name."""


@dataclass(frozen=True, slots=True)
class Settings:
    pod_name: str
    namespace: str
    pod_uid: str
    operator_ca: str
    engine: str
    """What a person calls it, and what it is called on PATH: terraform, or tofu."""
    program: str
    """Path or name of its binary."""
    work: Path
    listen_host: str | None
    """None: every address, v4 and v6."""
    control_port: int
    health_port: int
    api_url: str
    api_token: Path
    api_ca: Path
    identity_token: Path
    termination_log: str
    backend: Literal["Kubernetes", "Local"]
    local_states: Path
    cgroup: Path
    """Of the container itself, as its own cgroup namespace shows it."""
    operator_loss_s: float | None
    """How long a run goes on without an operator; None: to its end."""
    max_runs: int
    """How many begin here, one after the other."""
    scratch: tuple[Path, ...]
    """Directories beside `work` that are this agent's alone, and that runs write to."""
    providers: Providers

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Raises SettingsError."""
        engine = env.get("TERRAHALT_ENGINE", "Terraform")
        if engine not in _ENGINES:
            raise SettingsError(f"TERRAHALT_ENGINE is {engine!r}, it must be one of {', '.join(_ENGINES)}")
        backend = env.get("TERRAHALT_BACKEND", "Kubernetes")
        if backend not in ("Kubernetes", "Local"):
            raise SettingsError(f"TERRAHALT_BACKEND is {backend!r}, it must be Kubernetes or Local")
        loss = env.get("TERRAHALT_OPERATOR_LOSS_SECONDS", "")
        if loss and not loss.isdigit():
            raise SettingsError(f"TERRAHALT_OPERATOR_LOSS_SECONDS is {loss!r}, it must be a number of seconds")
        runs = env.get("TERRAHALT_MAX_TASKS", "1")
        if not runs.isdigit() or runs == "0":
            raise SettingsError(f"TERRAHALT_MAX_TASKS is {runs!r}, it must be a number of tasks")
        work = Path(env.get("TERRAHALT_WORK", "/work"))
        try:
            found = providers.decode(env.get(providers.VARIABLE, "{}"))
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return cls(
            pod_name=_required(env, "TERRAHALT_POD_NAME"),
            namespace=_required(env, "TERRAHALT_POD_NAMESPACE"),
            pod_uid=_required(env, "TERRAHALT_POD_UID"),
            operator_ca=_required(env, "TERRAHALT_OPERATOR_CA"),
            engine=_ENGINES[engine],
            program=env.get("TERRAHALT_ENGINE_PATH", _ENGINES[engine]),
            work=work,
            listen_host=env.get("TERRAHALT_LISTEN_HOST"),
            control_port=_port(env, "TERRAHALT_CONTROL_PORT", 8443),
            health_port=_port(env, "TERRAHALT_HEALTH_PORT", 8081),
            api_url=env.get("TERRAHALT_API_URL") or _in_cluster_url(env),
            api_token=Path(env.get("TERRAHALT_API_TOKEN_FILE", f"{_SERVICE_ACCOUNT}/token")),
            api_ca=Path(env.get("TERRAHALT_API_CA_FILE", f"{_SERVICE_ACCOUNT}/ca.crt")),
            identity_token=Path(env.get("TERRAHALT_IDENTITY_TOKEN_FILE", "/var/run/secrets/terrahalt.dev/agent/token")),
            termination_log=env.get("TERRAHALT_TERMINATION_LOG", "/dev/termination-log"),
            backend="Local" if backend == "Local" else "Kubernetes",
            local_states=Path(env.get("TERRAHALT_LOCAL_STATES", str(work / "states"))),
            cgroup=Path(env.get("TERRAHALT_CGROUP", "/sys/fs/cgroup")),
            operator_loss_s=float(loss) if loss else None,
            max_runs=int(runs),
            scratch=tuple(Path(path) for path in env.get("TERRAHALT_SCRATCH", "").split(":") if path),
            providers=found,
        )


def _required(env: Mapping[str, str], name: str) -> str:
    if not (value := env.get(name)):
        raise SettingsError(f"{name} is not set: agents are started by the operator, which sets it")
    return value


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdigit() or int(text) > 65535:
        raise SettingsError(f"{name} is {text!r}, it must be a port number")
    return int(text)


def _in_cluster_url(env: Mapping[str, str]) -> str:
    host = env.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    bracketed = f"[{host}]" if ":" in host else host
    return f"https://{bracketed}:{env.get('KUBERNETES_SERVICE_PORT', '443')}"
