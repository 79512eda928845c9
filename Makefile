# Every command of this project. `make` alone lists them.
#
# Variables, on the command line or in the environment:
#   PYTHON              a Python of 3.11 or newer (python3)
#   TERRAHALT_CACHE     where what is built once lies (~/.cache/terrahalt)
#   CLUSTER             the name of the kind cluster (terrahalt)
#   TERRAHALT_KUBECONFIG, TERRAHALT_REGISTRY
#                       a cluster of your own instead, and where to push images for it
PYTHON ?= python3
CLUSTER ?= terrahalt

VENV := .venv
CLUSTER_TOOL := $(PYTHON) -m tests.cluster --name $(CLUSTER)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

## help: this list
.PHONY: help
help:
	@echo 'usage: make <target>'
	@sed -n -e 's/^#### \(.*\)/\n\1/p' -e 's/^## \([a-z-]*\): \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) \
		| awk -F'|' 'NF == 2 { printf "%-18s %s\n", $$1, $$2; next } { print }'

#### Setting up

## venv: the tools for development, in .venv, pinned with hashes
.PHONY: venv
venv: $(VENV)/.complete

$(VENV)/.complete: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	touch $@

#### A cluster for tests and the demo

## cluster-up: a cluster (kind, or the one of TERRAHALT_KUBECONFIG); prints how to use it
.PHONY: cluster-up
cluster-up:
	@$(CLUSTER_TOOL) up

## cluster-down: removes the cluster and all that was started for it; the cache stays
.PHONY: cluster-down
cluster-down:
	@$(CLUSTER_TOOL) down

## cluster-status: whether it runs, and how to use it
.PHONY: cluster-status
cluster-status:
	@$(CLUSTER_TOOL) status

## images: builds the images and puts them where the cluster finds them; prints their names
.PHONY: images
images:
	@$(CLUSTER_TOOL) images

## tools: kind, kubectl, helm and terraform in the pinned versions; prints their paths
.PHONY: tools
tools:
	@$(CLUSTER_TOOL) tools
