"""What `run` makes of a folder, a file, a git address and flags; no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from terrahalt_operator.api.source import MAX_INLINE_BYTES, MAX_INLINE_FILES
from tests.plugin.program import Program

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ("--workspace", "network")


def made(alone: Program, *arguments: str, stdin: str = "") -> dict[str, Any]:
    task: dict[str, Any] = json.loads(alone("run", *arguments, "--dry-run", "--output=json", stdin=stdin))
    return task


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (tmp_path / "main.tf").write_text("# the network\n")
    return tmp_path


def test_a_folder_is_sent_with_its_modules_and_the_lock_file_of_its_providers(alone: Program, network: Path) -> None:
    (network / "modules" / "a").mkdir(parents=True)
    (network / "modules" / "a" / "a.tf").write_text("# a\n")
    (network / ".terraform.lock.hcl").write_text("# locked\n")
    task = made(alone, str(network), *WORKSPACE)
    assert task["spec"] == {
        "action": "Plan",
        "workspace": "network",
        "source": {
            "inline": {"main.tf": "# the network\n", "modules/a/a.tf": "# a\n", ".terraform.lock.hcl": "# locked\n"}
        },
    }
    assert task["metadata"] == {"generateName": "network-"}


@pytest.mark.parametrize(
    "name", ["terraform.tfstate", "terraform.tfstate.backup", ".terraform/providers", ".git/config", "saved.tfplan"]
)
def test_states_plans_and_what_tools_keep_beside_the_source_are_never_sent(
    alone: Program, network: Path, name: str
) -> None:
    (network / name).parent.mkdir(exist_ok=True)
    (network / name).write_text("secret")
    assert list(made(alone, str(network), *WORKSPACE)["spec"]["source"]["inline"]) == ["main.tf"]


def test_one_file_is_a_source_too(alone: Program, network: Path) -> None:
    task = made(alone, str(network / "main.tf"), *WORKSPACE)
    assert task["spec"]["source"] == {"inline": {"main.tf": "# the network\n"}}


def test_as_many_bytes_and_files_are_sent_as_a_task_holds(alone: Program, network: Path) -> None:
    for number in range(MAX_INLINE_FILES - 2):
        (network / f"{number}.tf").touch()
    (network / "large.tf").write_text("x" * (MAX_INLINE_BYTES - len("# the network\n")))
    assert len(made(alone, str(network), *WORKSPACE)["spec"]["source"]["inline"]) == MAX_INLINE_FILES


def test_a_folder_with_one_byte_more_is_refused_with_another_way(alone: Program, network: Path) -> None:
    (network / "large.tf").write_text("x" * (MAX_INLINE_BYTES + 1 - len("# the network\n")))
    said = alone.refused("run", str(network), *WORKSPACE, "--dry-run")
    assert f"has 2 files of {MAX_INLINE_BYTES + 1} bytes" in said
    assert "git repository" in said
    assert "--config-map" in said
    assert "large.tf" in said


def test_a_folder_with_one_file_more_is_refused(alone: Program, network: Path) -> None:
    for number in range(MAX_INLINE_FILES):
        (network / f"{number}.tf").touch()
    assert f"has {MAX_INLINE_FILES + 1} files" in alone.refused("run", str(network), *WORKSPACE, "--dry-run")


def test_a_link_that_leads_out_of_the_folder_is_refused(alone: Program, network: Path) -> None:
    outside = network.parent / "outside.tf"
    outside.write_text("secret")
    (network / "link.tf").symlink_to(outside)
    assert "link.tf is no file of" in alone.refused("run", str(network), *WORKSPACE, "--dry-run")


def test_a_link_within_the_folder_is_the_file_that_it_leads_to(alone: Program, network: Path) -> None:
    (network / "link.tf").symlink_to("main.tf")
    assert made(alone, str(network), *WORKSPACE)["spec"]["source"]["inline"]["link.tf"] == "# the network\n"


def test_what_is_no_text_is_refused_by_its_name(alone: Program, network: Path) -> None:
    (network / "lambda.zip").write_bytes(b"PK\xff\xfe")
    assert "lambda.zip is no text" in alone.refused("run", str(network), *WORKSPACE, "--dry-run")


def test_a_folder_without_terraform_files_is_refused(alone: Program, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    assert "has no .tf file" in alone.refused("run", str(tmp_path), *WORKSPACE, "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "git"),
    [
        (["https://git.example.com/net.git"], {"url": "https://git.example.com/net.git"}),
        (
            ["https://git.example.com/net.git//envs/prod?ref=v1"],
            {"url": "https://git.example.com/net.git", "path": "envs/prod", "ref": "v1"},
        ),
        (
            ["git::https://git.example.com/net.git", "--ref=main", "--path=envs"],
            {"url": "https://git.example.com/net.git", "path": "envs", "ref": "main"},
        ),
    ],
)
def test_a_git_address_may_have_a_path_and_a_ref_as_modules_of_terraform_do(
    alone: Program, arguments: list[str], git: dict[str, str]
) -> None:
    assert made(alone, *arguments, *WORKSPACE)["spec"]["source"] == {"git": git}


@pytest.mark.parametrize("address", ["git@git.example.com:net.git", "ssh://git.example.com/net.git", "file:///net.git"])
def test_an_address_that_no_flag_can_give_is_refused_before_anything_is_created(alone: Program, address: str) -> None:
    said = alone.refused("run", address, *WORKSPACE, "--dry-run")
    assert "begins with https://; for a private repository, or ssh, write a TerraformTask" in said


def test_flags_become_fields_of_the_task(alone: Program) -> None:
    flags = [
        *("--config-map=net", "--action=DESTROY", "--approval=manual", "--pool=fast", "--name=network-7"),
        *("--var=region=eu=west", "--var=count=3", '--var=zones=["a", 1]', '--var=tags={"a": true}', "--var=odd=[a"),
        *("--backend=s3", "--backend-config=bucket=states", "--backend-config-from=secret/bucket"),
        *("--env-from=secret/aws", "--env-from=configmap/proxies"),
        *("--var-from=secret/net", "--var-from=configmap/net"),
    ]
    task = made(alone, *flags, *WORKSPACE)
    assert task["metadata"] == {"name": "network-7"}
    assert task["spec"] == {
        "action": "Destroy",
        "approval": "Manual",
        "workspace": "network",
        "source": {"configMapRef": {"name": "net"}},
        "poolRef": {"name": "fast"},
        "variables": {"region": "eu=west", "count": "3", "zones": ["a", 1], "tags": {"a": True}, "odd": "[a"},
        "backend": {
            "type": "s3",
            "config": {"bucket": "states"},
            "configFrom": [{"secretRef": {"name": "bucket"}}],
        },
        "variablesFrom": [{"secretRef": {"name": "net"}}, {"configMapRef": {"name": "net"}}],
        "envFrom": [{"secretRef": {"name": "aws"}}, {"configMapRef": {"name": "proxies"}}],
    }


def test_flags_win_over_the_task_of_a_file(alone: Program) -> None:
    task = made(alone, f"--filename={ROOT}/examples/apply.yaml", "--name=again", "--action=plan", "--workspace=other")
    assert (task["metadata"]["name"], task["spec"]["action"], task["spec"]["workspace"]) == ("again", "Plan", "other")
    assert task["spec"]["timeoutSeconds"] == 600
    assert "terraform_data" in task["spec"]["source"]["inline"]["main.tf"]


def test_a_task_may_come_from_standard_input(alone: Program) -> None:
    text = (ROOT / "examples" / "plan.yaml").read_text()
    assert made(alone, "--filename=-", stdin=text)["metadata"]["name"] == "plan"


def test_a_file_with_other_objects_is_refused_as_they_would_be_missing(alone: Program) -> None:
    said = alone.refused("run", "--filename", str(ROOT / "examples" / "approval.yaml"), "--dry-run")
    assert "holds a Role too" in said


def test_no_workspace_is_made_up(alone: Program, network: Path) -> None:
    assert "--workspace NAME" in alone.refused("run", str(network), "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to run"),
        (["nowhere"], "no such file"),
        (["--config-map=net", "--action=refresh"], "use one of plan, apply, destroy"),
        (["--config-map=net", "--var=region"], "NAME=VALUE"),
        (["--config-map=net", "--env-from=aws"], "secret/NAME or configmap/NAME"),
        (["--config-map=net", "--ref=main"], "--ref is for a git repository"),
        (["--config-map=net", "https://git.example.com/net.git"], "give one of them"),
        (["--filename=a.yaml", "folder"], "give one of them"),
        (["--filename=-", "--output=table"], "use json or yaml"),
    ],
)
def test_a_mistake_says_what_to_write_instead(alone: Program, arguments: list[str], said: str) -> None:
    assert said in alone.refused("run", *arguments, *WORKSPACE, "--dry-run")
