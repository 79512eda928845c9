"""What a pod's environment means to the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrahalt_agent.settings import Settings, SettingsError

POD = {
    "TERRAHALT_POD_NAME": "agent-0",
    "TERRAHALT_POD_NAMESPACE": "team-a",
    "TERRAHALT_POD_UID": "u",
    "TERRAHALT_OPERATOR_CA": "pem",
}


def test_in_a_pod_four_names_are_enough() -> None:
    settings = Settings.read(POD | {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"})
    assert (settings.engine, settings.backend, settings.work) == ("terraform", "Kubernetes", Path("/work"))
    assert (settings.control_port, settings.health_port, settings.listen_host) == (8443, 8081, None)
    assert settings.api_url == "https://10.96.0.1:443"
    assert settings.termination_log == "/dev/termination-log"
    assert settings.identity_token == Path("/var/run/secrets/terrahalt.dev/agent/token")


def test_an_api_server_with_an_ipv6_address_is_bracketed() -> None:
    assert Settings.read(POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}).api_url == "https://[fd00::1]:443"


@pytest.mark.parametrize("name", POD)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not set"):
        Settings.read({key: value for key, value in POD.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [("TERRAHALT_ENGINE", "Pulumi"), ("TERRAHALT_BACKEND", "s3"), ("TERRAHALT_CONTROL_PORT", "x"),
     ("TERRAHALT_HEALTH_PORT", "99999"), ("TERRAHALT_OPERATOR_LOSS_SECONDS", "soon"),
     ("TERRAHALT_MAX_TASKS", "0"), ("TERRAHALT_MAX_TASKS", "many")],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '{value}'"):
        Settings.read(POD | {name: value})


def test_a_run_goes_on_without_an_operator_unless_a_time_is_given() -> None:
    assert Settings.read(POD).operator_loss_s is None
    assert Settings.read(POD | {"TERRAHALT_OPERATOR_LOSS_SECONDS": "1800"}).operator_loss_s == 1800.0


def test_opentofu_is_an_engine_too() -> None:
    settings = Settings.read(POD | {"TERRAHALT_ENGINE": "OpenTofu"})
    assert (settings.engine, settings.program) == ("tofu", "tofu")


def test_an_agent_has_one_run_and_no_other_directories_unless_it_is_told() -> None:
    plain = Settings.read(POD)
    assert (plain.max_runs, plain.scratch) == (1, ())
    told = Settings.read(POD | {"TERRAHALT_MAX_TASKS": "7", "TERRAHALT_SCRATCH": "/tmp:/dev/shm"})
    assert (told.max_runs, told.scratch) == (7, (Path("/tmp"), Path("/dev/shm")))
