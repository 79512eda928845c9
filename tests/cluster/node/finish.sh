#!/bin/sh
# The last steps of making a node image: run by tests/cluster/node_image.py with the image's own root
# file system as root, because they take the image's own systemctl, ctr and containerd. Expects
# /images.tar and leaves nothing of its own.
set -eu

systemctl enable kubelet.service containerd.service undo-mount-hacks.service
systemctl mask systemd-binfmt.service

ctr oci spec > /etc/containerd/cri-base.json

# Put the images into the store that the node's containerd will open.
work=/run/finish
mkdir -p "$work"
cat > "$work/containerd.toml" <<TOML
version = 2
root = "/var/lib/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$work/containerd.sock"
TOML
containerd --config "$work/containerd.toml" &
containerd_pid=$!
store() { ctr --address "$work/containerd.sock" --namespace k8s.io "$@"; }
tries=0
until store version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "containerd did not answer within 20 s" >&2; exit 1; }
    sleep 0.2
done
store images import --no-unpack --all-platforms /images.tar
# Unpinned, the kubelet would remove them when the disk gets full, and they can't be pulled again.
for image in $(store images ls --quiet); do
    store images label "$image" io.cri-containerd.pinned=pinned > /dev/null
done
kill "$containerd_pid"
wait "$containerd_pid" || true
rm -rf "$work" /images.tar
