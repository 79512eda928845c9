"""A kind node image made here, for where kindest/node can't be pulled.

Debian's packages, kind's own scripts and units (from its Go module), the Kubernetes programs of
node/hyperkube, and the images of the control plane already in containerd's store. It must be good for
one purpose only: a node of the kind version in `pins`. Called by `node_image_choice`, and by `tools`
for its kubectl.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import cache, commands, debian, golang, pins, preloaded
from tests.cluster.cache import Product, content_key
from tests.cluster.engine import Engine
from tests.cluster.failure import ClusterError

NODE_SOURCE = cache.SOURCE / "node"
PACKAGES = (
    "systemd", "iptables", "iproute2", "conntrack", "ethtool", "mount", "kmod", "procps", "socat",
    "ca-certificates", "containerd", "runc", "libseccomp2", "containernetworking-plugins",
)  # fmt: skip
CNI_PLUGINS = ("host-local", "loopback", "ptp", "portmap")
# A container has no devices to wait for and no file systems to mount.
UNITS_OF_A_MACHINE = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/basic.target.wants/*",
    "etc/systemd/system/*.wants/*",
)
VERSION_VARIABLES = {
    f"{package}.{name}": value
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in {
        "gitVersion": pins.KUBERNETES,
        "gitMajor": pins.KUBERNETES.lstrip("v").split(".")[0],
        "gitMinor": pins.KUBERNETES.split(".")[1],
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": preloaded.CREATED,
    }.items()
}
# The controller manager's own provisioner, which kind switches on.
STORAGE_CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
provisioner: kubernetes.io/host-path
"""


def hyperkube() -> Product:
    source = NODE_SOURCE / "hyperkube"
    return golang.compiled("hyperkube", source, cold="7 min", variables=VERSION_VARIABLES)


def coredns() -> Product:
    return golang.compiled("coredns", NODE_SOURCE / "coredns", cold="2 min")


def pause() -> Product:
    return golang.compiled("pause", NODE_SOURCE / "pause", cold="2 s")


def root_file_system() -> Product:
    return debian.root_file_system("node", PACKAGES, cold="90 s")


def parts() -> Sequence[Product]:
    return (root_file_system(), pause(), hyperkube(), coredns())


def tag() -> str:
    key = content_key(
        *(part.key for part in parts()),
        *(str(text) for text in (pins.KIND, PACKAGES, CNI_PLUGINS, UNITS_OF_A_MACHINE, STORAGE_CLASS)),
        NODE_SOURCE / "finish.sh",
        cache.SOURCE / "preloaded.py",
        Path(__file__),
    )
    return f"terrahalt.test/kind-node:{pins.KUBERNETES}-{key}"


def assemble(engine: Engine) -> None:
    """Makes the image of `tag()` in the engine from the parts, which are built before."""
    with tempfile.TemporaryDirectory(prefix="node-image-", dir=cache.folder("tmp")) as work:
        root = Path(work) / "root"
        commands.run(
            ["cp", "--archive", "--reflink=auto", root_file_system().path / "root", root],
            log="node-image",
        )
        kind_module = _kind_module()
        _add_files_of_kind(kind_module, root)
        _add_kubernetes(kind_module, root)
        preloaded.write_archive(
            root / "images.tar",
            hyperkube=hyperkube().path / "hyperkube",
            coredns=coredns().path / "coredns",
            pause=pause().path / "pause",
            root=root,
        )
        _finish_inside(root)
        archive = Path(work) / "root.tar"
        commands.run(["tar", "-C", root, "-cf", archive, "."], log="node-image")
        engine.run(
            [
                "import",
                "--change", 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
                "--change", "ENV container=docker",
                "--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                archive, tag(),
            ],
            log="node-image",
        )  # fmt: skip


def _kind_module() -> Path:
    # Outside of any module, so that a go.mod of the current folder says nothing about the version.
    found = commands.output(
        [golang.go(), "mod", "download", "-json", f"sigs.k8s.io/kind@{pins.KIND}"],
        cwd=cache.folder("tmp"),
        env={"GOFLAGS": ""},
        timeout_s=300,
    )
    return Path(json.loads(found)["Dir"])


def _add_files_of_kind(kind_module: Path, root: Path) -> None:
    """What the Dockerfile of kind's base image copies and removes."""
    files = kind_module / "images" / "base" / "files"
    for folder in ("etc", "kind"):
        # The module cache is read-only; a folder copied with its mode couldn't be written to.
        commands.run(
            ["cp", "-r", "--no-preserve=mode", f"{files / folder}/.", root / folder]
            if folder == "etc"
            else ["cp", "-r", "--no-preserve=mode", files / folder, root],
            log="node-image",
        )
    for script in (root / "kind", root / "kind/bin", *(root / "kind/bin").iterdir()):
        script.chmod(0o755)
    entrypoint = root / "usr/local/bin/entrypoint"
    shutil.copyfile(files / "usr/local/bin/entrypoint", entrypoint)
    entrypoint.chmod(0o755)
    for pattern in UNITS_OF_A_MACHINE:
        for unit in root.glob(pattern):
            unit.unlink()
    with (root / "etc/systemd/journald.conf").open("a", encoding="ascii") as file:
        file.write("ReadKMsg=no\n")
    _link(root / "sbin/init", "/usr/lib/systemd/systemd")
    for program in ("containerd", "ctr"):
        _link(root / "usr/local/bin" / program, f"/usr/bin/{program}")
    config = root / "etc/containerd/config.toml"
    text = config.read_text(encoding="utf-8")
    before, after = "restrict_oom_score_adj = false", "restrict_oom_score_adj = true"
    if before not in text:
        raise ClusterError(f"kind {pins.KIND} has another containerd configuration than expected: {config}")
    config.write_text(text.replace(before, after), encoding="utf-8")


def _add_kubernetes(kind_module: Path, root: Path) -> None:
    shutil.copy(hyperkube().path / "hyperkube", root / "usr/bin/hyperkube")
    for applet in ("kubeadm", "kubelet", "kubectl"):
        _link(root / "usr/bin" / applet, "hyperkube")
    (root / "kind/version").write_text(pins.KUBERNETES, encoding="ascii")
    (root / "etc/kubernetes/manifests").mkdir(parents=True)
    (root / "opt/cni/bin").mkdir(parents=True)
    for plugin in CNI_PLUGINS:
        _link(root / "opt/cni/bin" / plugin, f"/usr/lib/cni/{plugin}")
    manifests = root / "kind/manifests"
    manifests.mkdir()
    (manifests / "default-cni.yaml").write_text(_pod_network_manifest(kind_module), encoding="utf-8")
    (manifests / "default-storage.yaml").write_text(STORAGE_CLASS, encoding="ascii")


def _pod_network_manifest(kind_module: Path) -> str:
    """kind keeps it as a string in a Go file; ours differs in the image and in what it may do."""
    source = kind_module / "pkg/build/nodeimage/const_cni.go"
    text = source.read_text(encoding="utf-8")
    _, marker, rest = text.partition("const defaultCNIManifest = `")
    manifest, image, end = rest.partition("` + kindnetdImage + `")
    if not (marker and image):
        raise ClusterError(f"kind {pins.KIND} keeps its pod network manifest elsewhere than in {source}")
    manifest += preloaded.POD_NETWORK_IMAGE + end[: end.rindex("`")]
    # iptables of Debian wants more capabilities than kind's own daemon.
    return manifest.replace("privileged: false", "privileged: true")


def _finish_inside(root: Path) -> None:
    shutil.copy(NODE_SOURCE / "finish.sh", root / "finish.sh")
    # Own namespaces: whatever interrupts this, its mount and its containerd are gone.
    inside = 'mount -t proc proc "$1/proc" && exec chroot "$1" /bin/sh /finish.sh'
    commands.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside, "finish", root],
        log="node-image",
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout_s=300,
    )
    (root / "finish.sh").unlink()
    # Containers get the limits of the node itself, not the ones that ctr writes down by default.
    base = root / "etc/containerd/cri-base.json"
    specification = json.loads(base.read_text(encoding="utf-8"))
    specification["process"].pop("rlimits", None)
    base.write_text(json.dumps(specification), encoding="utf-8")


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
