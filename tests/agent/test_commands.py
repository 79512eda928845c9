"""What terraform is started with: arguments, environment, files."""

from __future__ import annotations

import pytest

from terrahalt_agent.core.commands import Paths, argv, as_planned, environment
from terrahalt_agent.core.source import SourceError, check_files
from terrahalt_protocol.messages import Action, Step

PATHS = Paths(
    module="/w/module",
    home="/w/home",
    variables="/w/v.json",
    backend="/w/backend.hcl",
    cli_config="",
    plugins="",
    plan="/w/plan",
    logs="/w/logs",
)


def test_init_gets_the_backends_arguments() -> None:
    assert argv("terraform", Step.INIT, Action.APPLY, PATHS, ["-backend-config=a=b"], lock_timeout_s=60) == [
        "terraform", "init", "-input=false", "-json", "-backend-config=a=b",
    ]  # fmt: skip


@pytest.mark.parametrize(("action", "extra"), [(Action.APPLY, []), (Action.PLAN, []), (Action.DESTROY, ["-destroy"])])
def test_a_plan_is_always_saved_to_a_file(action: Action, extra: list[str]) -> None:
    assert argv("terraform", Step.PLAN, action, PATHS, ["-x"], lock_timeout_s=60) == [
        "terraform", "plan", "-input=false", "-lock-timeout=60s", "-json", *extra,
        "-var-file=/w/v.json", "-out=/w/plan",
    ]  # fmt: skip


def test_apply_takes_the_plan_and_nothing_else() -> None:
    assert argv("tofu", Step.APPLY, Action.DESTROY, PATHS, ["-x"], lock_timeout_s=5) == [
        "tofu", "apply", "-input=false", "-lock-timeout=5s", "-json", "/w/plan",
    ]  # fmt: skip


def test_other_steps_have_no_process() -> None:
    with pytest.raises(ValueError, match="has no process"):
        argv("terraform", Step.SWEEP, Action.PLAN, PATHS, [], lock_timeout_s=60)


def test_the_containers_environment_goes_through_but_for_what_changes_terraform() -> None:
    container = {
        "AWS_ROLE_ARN": "arn", "HTTPS_PROXY": "http://p", "TF_VAR_x": "1", "TF_CLI_CONFIG_FILE": "/etc/rc",
        "HOME": "/root", "USER": "me",
        "TF_CLI_ARGS": "-x", "TF_CLI_ARGS_apply": "-lock=false", "TF_LOG": "TRACE", "TF_LOG_PATH": "/x",
        "TF_DATA_DIR": "/x", "TF_WORKSPACE": "x", "TF_REATTACH_PROVIDERS": "x", "LD_PRELOAD": "x",
        "TOFU_X_EXPERIMENTAL_RUNTIME": "1",
        "TERRAHALT_POD_NAME": "x",
    }  # fmt: skip
    assert environment(container, {}, run_id="01J", home="/w/home") == {
        "AWS_ROLE_ARN": "arn", "HTTPS_PROXY": "http://p", "TF_VAR_x": "1", "TF_CLI_CONFIG_FILE": "/etc/rc",
        "HOME": "/w/home", "USER": "01J", "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1",
    }  # fmt: skip


def test_env_from_wins_over_the_container_and_never_over_ours() -> None:
    env_from = {"A": "secret", "USER": "x", "TF_CLI_ARGS_apply": "-lock=false", "TERRAHALT_X": "1"}
    env = environment({"A": "1"}, env_from, run_id="01J", home="/h")
    assert (env["A"], env["USER"]) == ("secret", "01J")
    assert not {"TF_CLI_ARGS_apply", "TERRAHALT_X"} & set(env)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "../x", "a/../x", "a/..", "a//b", "./a", "a/", ".terraform/x", "errored.tfstate",
     "terrahalt_backend_override.tf.json", "a\0b"],
)  # fmt: skip
def test_a_file_that_could_leave_the_module_or_is_not_the_tasks_is_refused_by_name(path: str) -> None:
    with pytest.raises(SourceError, match="file "):
        check_files({"main.tf": b"", path: b""})


def test_a_file_cannot_be_a_directory_too() -> None:
    with pytest.raises(SourceError, match="is a file of the source too"):
        check_files({"modules": b"", "modules/a.tf": b""})


def test_a_source_without_files_is_refused() -> None:
    with pytest.raises(SourceError, match="no files"):
        check_files({})


def test_files_in_folders_are_fine() -> None:
    check_files({"main.tf": b"", "modules/net/main.tf": b"", ".terraform.lock.hcl": b"", "..x": b""})


def test_no_file_takes_the_state_elsewhere_after_ours() -> None:
    with pytest.raises(SourceError, match="it overrides the backend"):
        check_files({"zz_override.tf": b'terraform {\n  backend "local" {}\n}'})
    check_files({"zz_override.tf": b"locals {}", "a_override.tf": b"backend", "modules/zz_override.tf": b"backend"})


def test_the_apply_of_a_plan_gets_new_credentials_and_the_input_variables_that_its_engine_takes() -> None:
    planned = {"TF_VAR_a": "old", "TF_VAR_gone": "old", "TOKEN": "old"}
    env = {"TF_VAR_a": "new", "TF_VAR_more": "new", "TOKEN": "new"}
    assert as_planned(env, planned, engine="terraform") == env
    assert as_planned(env, planned, engine="tofu") == {"TF_VAR_a": "old", "TF_VAR_gone": "old", "TOKEN": "new"}
