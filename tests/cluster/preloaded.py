"""The container images that a node has from the start, as one archive for containerd.

Made directly as files: most are the same binary under another name, so they share their layers. It
must not need an engine. Called by `node_image`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import commands, pins

REGISTRY = "registry.k8s.io"
POD_NETWORK_IMAGE = "docker.io/kindest/kindnetd:terrahalt"
APPLETS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy",
    "etcd", "kindnetd", "kubectl",
)  # fmt: skip
XTABLES = "usr/lib/x86_64-linux-gnu/xtables"
IPTABLES_LINKS = tuple(
    f"{family}{suffix}" for family in ("iptables", "ip6tables") for suffix in ("", "-save", "-restore")
)
# Fixed, so that equal content has an equal digest.
CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class _Entry:
    """A file (`source`), a link (`target`) or, with neither, a folder that anyone may write to."""

    path: str
    source: Path | None = None
    target: str | None = None


@dataclass(frozen=True)
class _Layer:
    name: str
    diff_id: str


def write_archive(archive: Path, *, hyperkube: Path, coredns: Path, pause: Path, root: Path) -> None:
    """`root` is the node's root file system: iptables and ip come from there, with their libraries."""
    with tarfile.open(archive, "w") as tar:
        kubernetes = _add_layer(tar, "kubernetes", _kubernetes(hyperkube))
        network = _add_layer(tar, "network", _network_programs(root))
        dns = _add_layer(tar, "dns", [_Entry("tmp"), _Entry("coredns", coredns)])
        waiting = _add_layer(tar, "pause", [_Entry("pause", pause)])
        version = pins.KUBERNETES
        manifest = [
            _add_image(tar, f"{REGISTRY}/{name}:{version}", [kubernetes], name)
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        ]
        manifest += [
            _add_image(tar, f"{REGISTRY}/kube-proxy:{version}", [kubernetes, network], "kube-proxy"),
            _add_image(tar, f"{REGISTRY}/etcd:{pins.ETCD_TAG}", [kubernetes], "etcd"),
            _add_image(tar, f"{REGISTRY}/coredns/coredns:{pins.COREDNS_TAG}", [dns], "/coredns"),
            _add_image(tar, f"{REGISTRY}/pause:{pins.PAUSE_TAG}", [waiting], "/pause"),
            _add_image(tar, POD_NETWORK_IMAGE, [kubernetes, network], "kindnetd"),
        ]
        _add_file(tar, "manifest.json", json.dumps(manifest).encode())


def _kubernetes(hyperkube: Path) -> list[_Entry]:
    return [
        _Entry("tmp"),
        _Entry("etc/nsswitch.conf", Path("/etc/nsswitch.conf")),
        _Entry("usr/local/bin/hyperkube", hyperkube),
        *(_Entry(f"usr/local/bin/{applet}", target="hyperkube") for applet in APPLETS),
    ]


def _network_programs(root: Path) -> list[_Entry]:
    # kube-proxy's Services appear only with all extensions, the linked names among them
    # (libipt_MASQUERADE.so -> libxt_MASQUERADE.so), and with what they load (libm).
    extensions = sorted((root / XTABLES).glob("lib*.so"))
    programs = [Path("/usr/sbin/xtables-nft-multi"), Path("/bin/ip")]
    entries = [
        _Entry("usr/sbin/xtables-nft-multi", root / "usr/sbin/xtables-nft-multi"),
        _Entry("usr/sbin/ip", root / "bin/ip"),
        *(_Entry(f"usr/sbin/{name}", target="xtables-nft-multi") for name in IPTABLES_LINKS),
    ]
    inside = [Path("/") / extension.relative_to(root) for extension in extensions]
    entries += _libraries(root, [*programs, *inside])
    for extension in extensions:
        path = str(extension.relative_to(root))
        if extension.is_symlink():
            entries.append(_Entry(path, target=os.readlink(extension)))
        else:
            entries.append(_Entry(path, extension))
    return entries


def _libraries(root: Path, files: list[Path]) -> list[_Entry]:
    listed = commands.output(["chroot", root, "ldd", *files])
    found = {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
    libraries = sorted(path for path in found if not path.endswith(":"))
    real = commands.output(["chroot", root, "realpath", *libraries]).splitlines()
    return [_Entry(path.lstrip("/"), root / target.lstrip("/")) for path, target in zip(libraries, real, strict=True)]


def _add_layer(archive: tarfile.TarFile, name: str, entries: list[_Entry]) -> _Layer:
    buffer = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            _add_parents(tar, entry.path, folders)
            info = tarfile.TarInfo(entry.path)
            info.mode = 0o755
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
                tar.addfile(info)
            elif entry.source is not None:
                info.size = entry.source.stat().st_size
                with entry.source.open("rb") as file:
                    tar.addfile(info, file)
            else:
                info.type, info.mode = tarfile.DIRTYPE, 0o1777
                folders.add(entry.path)
                tar.addfile(info)
    content = buffer.getvalue()
    _add_file(archive, f"{name}.tar", content)
    return _Layer(f"{name}.tar", f"sha256:{hashlib.sha256(content).hexdigest()}")


def _add_parents(tar: tarfile.TarFile, path: str, folders: set[str]) -> None:
    parent = os.path.dirname(path)
    if not parent or parent in folders:
        return
    _add_parents(tar, parent, folders)
    folders.add(parent)
    info = tarfile.TarInfo(parent)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(info)


def _add_image(archive: tarfile.TarFile, tag: str, layers: list[_Layer], entrypoint: str) -> dict[str, object]:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {
                "Entrypoint": [entrypoint],
                "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": CREATED, "created_by": layer.name} for layer in layers],
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    _add_file(archive, name, config)
    return {"Config": name, "RepoTags": [tag], "Layers": [layer.name for layer in layers]}


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
