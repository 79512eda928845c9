"""The images that `make images` makes, as they are: size, user, programs. About 30 s with built images."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from tests import git_server
from tests.agent_terraform.certificates import an_authority
from tests.cluster import Images, images, pins, status
from tests.cluster.engine import Engine
from tests.cluster.image_size import measure

pytestmark = pytest.mark.cluster

AGENT_LIMIT_BYTES = 120_000_000
IMAGES = ("agent", "agent_tofu", "operator")


@pytest.fixture(scope="module")
def references() -> Images:
    return images()


def inside(on: Engine, reference: str, script: str) -> str:
    """Run as a pod would run it: no rights, nothing to write to but /work and /tmp, no network."""
    return on.output(
        ["run", "--rm", "--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges",
         "--tmpfs=/work:mode=1777,exec", "--tmpfs=/tmp", "--entrypoint=sh", reference, "-c", script],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["agent", "agent_tofu"])
def test_the_agents_without_engine_and_git_are_under_120_mb(on: Engine, references: Images, name: str) -> None:
    assert measure(on, getattr(references, name)).without_engine_and_git < AGENT_LIMIT_BYTES


@pytest.mark.parametrize("name", IMAGES)
def test_the_images_run_as_an_ordinary_user_and_start_our_package(on: Engine, references: Images, name: str) -> None:
    reference: str = getattr(references, name)
    package = f"terrahalt_{name.removesuffix('_tofu')}"
    config = json.loads(on.output(["image", "inspect", "--format", "{{json .Config}}", reference]))

    assert config["User"] == "65532:65532"
    assert config["WorkingDir"] == "/work"
    waits = ["env", "--block-signal=TERM"] if package == "terrahalt_agent" else []
    assert config["Entrypoint"] == [*waits, "python3", "-m", package]
    assert inside(on, reference, f"id -u; python3 -c 'import {package}, terrahalt_protocol'") == "65532"


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_in_the_images_gives_more_rights_or_installs_more(on: Engine, references: Images, name: str) -> None:
    script = "find / -xdev -perm /6000 -type f; for p in apt dpkg perl su mount pip; do command -v $p; done; true"
    assert inside(on, getattr(references, name), script) == ""


def test_the_agent_clones_with_git_and_has_ssh(on: Engine, references: Images) -> None:
    script = """
        git init -q a && git -C a -c user.name=a -c user.email=a@b commit -q --allow-empty -m x
        git clone -q a b && git -C b submodule status && git -C b log --format=%s
        ldd /usr/lib/git-core/git-remote-https | grep 'not found' ; ssh -V 2>&1 | cut -d_ -f1
    """
    assert inside(on, references.agent, script).splitlines() == ["x", "OpenSSH"]


def test_the_agent_fetches_a_source_over_https_with_a_private_authority(
    on: Engine, references: Images, tmp_path: Path
) -> None:
    authority = an_authority(tmp_path, "git")
    files = {
        "ca.pem": authority.ca.encode(),
        "server.pem": authority.client.read_bytes(),
        "git_server.py": Path(git_server.__file__).read_bytes(),
        "fetch.py": (Path(__file__).parent / "fetch_over_https.py").read_bytes(),
    }
    put = [f"echo {base64.b64encode(content).decode()} | base64 -d > {name}" for name, content in files.items()]
    assert inside(on, references.agent, "\n".join([*put, "python3 fetch.py"])) == "main.tf"


def test_each_agent_has_its_engine_in_the_pinned_version_and_no_other(on: Engine, references: Images) -> None:
    script = (
        "CHECKPOINT_DISABLE=1; export CHECKPOINT_DISABLE; for e in terraform tofu; do $e version | head -1; done; true"
    )
    assert inside(on, references.agent, f"({script}) 2> /tmp/e").splitlines() == [f"Terraform v{pins.TERRAFORM}"]
    assert inside(on, references.agent_tofu, f"({script}) 2> /tmp/e").splitlines() == [f"OpenTofu v{pins.TOFU}"]


def test_both_agents_share_all_layers_but_their_engine_and_our_code(on: Engine, references: Images) -> None:
    def layers(reference: str) -> list[str]:
        found: list[str] = json.loads(on.output(["image", "inspect", "--format", "{{json .RootFS.Layers}}", reference]))
        return found

    terraform, tofu = layers(references.agent), layers(references.agent_tofu)
    assert [a == b for a, b in zip(terraform, tofu, strict=True)].index(False) >= len(terraform) - 2


@pytest.mark.parametrize(("name", "engine"), [("agent_test", "terraform"), ("agent_tofu_test", "tofu")])
def test_the_test_agents_find_their_provider_without_a_network(
    on: Engine, references: Images, name: str, engine: str
) -> None:
    script = f"""
        echo 'resource "time_sleep" "a" {{ create_duration = "1s" }}' > main.tf
        {engine} init -no-color > log 2>&1 && {engine} apply -no-color -auto-approve >> log 2>&1 || cat log
        {engine} state list
    """
    assert inside(on, getattr(references, name), script) == "time_sleep.a"


def test_byte_code_is_complete_so_that_a_read_only_start_is_fast(on: Engine, references: Images) -> None:
    # With -v, Python tells of each module whether its code came from the source or from byte code.
    script = "python3 -v -c 'import aiohttp, cryptography.fernet, terrahalt_protocol' 2>&1"
    told = inside(on, references.agent, script).splitlines()
    sources = [line for line in told if line.startswith("# code object from") and line.rstrip().endswith(".py'")]
    assert len([line for line in told if line.startswith("# code object from")]) > 100
    assert sources == []


def test_images_that_are_there_are_neither_built_nor_loaded_again(on: Engine) -> None:
    # Its own first call: somebody may have edited the checkout since the fixture's.
    references = images()
    before = set(on.output(["image", "ls", "--all", "--quiet"]).split())
    assert images() == references
    assert set(on.output(["image", "ls", "--all", "--quiet"]).split()) == before


def test_the_cluster_runs_what_was_loaded(references: Images) -> None:
    from tests.cluster import tool

    cluster = status()
    assert cluster
    kubectl = [str(tool("kubectl")), "--kubeconfig", str(cluster.kubeconfig), "--namespace", "default"]
    run = ["run", "image-check", f"--image={references.agent}", "--restart=Never", "--image-pull-policy=Never"]
    try:
        subprocess.run([*kubectl, *run, "--command", "--", "sleep", "60"], check=True, capture_output=True)
        ready = ["wait", "--for=condition=Ready", "pod/image-check", "--timeout=60s"]
        subprocess.run([*kubectl, *ready], check=True, capture_output=True)
    finally:
        subprocess.run(
            [*kubectl, "delete", "pod", "image-check", "--now", "--ignore-not-found"], check=True, capture_output=True
        )
