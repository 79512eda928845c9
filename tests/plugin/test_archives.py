"""What `make plugin-dist` packs for users, and the manifest for krew."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.cluster import architecture, cache
from tests.cluster.kubectl_plugin import NAME, PLATFORMS, Platform, pack, version
from tests.cluster.progress import Progress

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="starts what was packed for Linux")

OURS = Platform("linux", architecture.ours())
ADDRESS = "https://downloads.example.com/v1"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    with cache.lock():
        pack(folder, Progress(), [OURS], f"{ADDRESS}/")
    return folder


def test_an_archive_holds_a_program_that_starts_and_the_licence(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed / OURS.archive) as archive:
        archive.extractall(tmp_path, filter="data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSE", NAME]
    done = subprocess.run([tmp_path / NAME, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version()


def test_checksums_and_manifest_are_those_of_the_archive(packed: Path) -> None:
    checksum = hashlib.sha256((packed / OURS.archive).read_bytes()).hexdigest()
    assert (packed / "SHA256SUMS").read_text() == f"{checksum}  {OURS.archive}\n"
    manifest = yaml.safe_load((packed / "terrahalt.yaml").read_text())
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("Plugin", "terrahalt")
    assert manifest["spec"]["version"] == f"v{version()}"
    (entry,) = manifest["spec"]["platforms"]
    assert entry["selector"] == {"matchLabels": {"os": "linux", "arch": OURS.architecture.debian}}
    assert (entry["uri"], entry["sha256"]) == (f"{ADDRESS}/{OURS.archive}", checksum)
    assert entry["bin"] == NAME
    assert [file["from"] for file in entry["files"]] == [NAME, "LICENSE"]


def test_packing_twice_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    with cache.lock():
        pack(tmp_path, Progress(), [OURS], ADDRESS)
    for name in (OURS.archive, "SHA256SUMS", "terrahalt.yaml"):
        assert (tmp_path / name).read_bytes() == (packed / name).read_bytes(), name


def test_every_platform_of_kubectl_has_an_archive() -> None:
    assert [each.archive for each in PLATFORMS] == [
        *("kubectl-terrahalt_linux_amd64.tar.gz", "kubectl-terrahalt_linux_arm64.tar.gz"),
        *("kubectl-terrahalt_darwin_amd64.tar.gz", "kubectl-terrahalt_darwin_arm64.tar.gz"),
        *("kubectl-terrahalt_windows_amd64.zip", "kubectl-terrahalt_windows_arm64.zip"),
    ]


def test_windows_gets_a_program_that_ends_in_exe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = next(each for each in PLATFORMS if each.system == "windows")
    # What is in it was tried for Linux; compiling for another system takes a minute.
    monkeypatch.setattr("tests.cluster.kubectl_plugin.product", lambda _platform: None)
    monkeypatch.setattr(Progress, "make", lambda _self, _product: tmp_path)
    (tmp_path / NAME).write_bytes(b"MZ")
    pack(tmp_path / "dist", Progress(), [windows])
    with zipfile.ZipFile(tmp_path / "dist" / windows.archive) as archive:
        assert archive.namelist() == ["kubectl-terrahalt.exe", "LICENSE"]
        assert archive.read("kubectl-terrahalt.exe") == b"MZ"
