# Every command of this project. `make` alone lists them.
#
# Variables, on the command line or in the environment:
#   PYTHON              a Python of 3.11 or newer (python3)
#   TERRAHALT_CACHE     where what is built once lies (~/.cache/terrahalt)
#   ENGINE              terraform or tofu: the engine of the test suites (terraform)
#   CLUSTER             the name of the kind cluster (terrahalt)
#   WORKERS             its nodes besides the first one (none; 1 makes two nodes)
#   NODE                of node-pause and the like (CLUSTER-worker)
#   CANCELS, KILLS, ADOPTED, DRAINED, POOL_TASKS, MINUTES
#                       of `make soak` (200, 50, 15, 10, 200, 10); 0: without that part. MINUTES also of the other
#                       soaks. A node has room for about 15 agents: ADOPTED=50 needs WORKERS=3
#   APPLIES             of `make upgrade`: how many run meanwhile (20)
#   AWAY_S, API_AWAY_S  of `make outages`: seconds without an operator, without an API server (1800, 180)
#   RUNS                of `make bench` its cancels, starts and hand-overs (20, 30, 10), of `make bench-agent` (200)
#   TASKS, STEPS        of `make bench-scale` (10000; 3, each with ten times the tasks of the one before)
#   ONLY                of `make bench`: one of its parts; python -m tests.bench --help lists them
#   ROUNDS              of `make chaos` (500; with ROUND: the first of them, and without ROUNDS only that one)
#   SEEDS, JOBS         of `make simulate` (2000, the number of cores); MOVES=1 tells how often each was made
#   FAULTS, DEPTH, EVERY_ORDER
#                       of `make search` (1, 200, no), its bounds: python -m tests.simulation.search --help
#   SEED, ROUND         of both soaks, chaos and simulate (random, all): what a failure says, to repeat it
#   PLUGIN_URL          of `make plugin-dist`: the folder on the web that its archives will be downloaded from
#   TERRAHALT_KUBECONFIG, TERRAHALT_REGISTRY
#                       a cluster of your own instead, and where to push images for it
PYTHON ?= python3
CLUSTER ?= $(or $(TERRAHALT_CLUSTER),terrahalt)
WORKERS ?=
CANCELS ?= 200
KILLS ?= 50
ADOPTED ?= 15
DRAINED ?= 10
POOL_TASKS ?= 200
MINUTES ?= 10
APPLIES ?= 20
AWAY_S ?= 1800
API_AWAY_S ?= 180
SEEDS ?= 2000
NODE ?= $(CLUSTER)-worker

VENV := .venv
SOURCES := protocol/src:operator/src:agent_image/src
CLUSTER_TOOL := $(PYTHON) -m tests.cluster --name $(CLUSTER)
# What the tests take when they say no name.
export TERRAHALT_CLUSTER := $(CLUSTER)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

## help: this list
.PHONY: help
help:
	@echo 'usage: make <target>'
	@sed -n -e 's/^#### \(.*\)/\n\1/p' -e 's/^## \([a-z0-9-]*\): \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) \
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
	@$(CLUSTER_TOOL) $(if $(WORKERS),--workers $(WORKERS)) up

## cluster-down: removes the cluster and all that was started for it; the cache stays
.PHONY: cluster-down
cluster-down:
	@$(CLUSTER_TOOL) down

## cluster-status: whether it runs, and how to use it
.PHONY: cluster-status
cluster-status:
	@$(CLUSTER_TOOL) status

## node-pause: freezes NODE with all its pods, until node-resume
## node-stop: takes the power from NODE, until node-start
## node-drain: drains NODE as an administrator would, until node-uncordon
NODE_ACTIONS := $(addprefix node-,pause resume stop start drain uncordon)
.PHONY: $(NODE_ACTIONS)
$(NODE_ACTIONS): node-%:
	@$(CLUSTER_TOOL) $* $(NODE)

## images: builds the images and puts them where the cluster finds them; prints their names
.PHONY: images
images:
	@$(CLUSTER_TOOL) images

## images-arm64: the images for arm64, built and started under qemu; prints the archives (9 min the first time; root)
.PHONY: images-arm64
images-arm64:
	@$(CLUSTER_TOOL) images-arm64

## tools: kind, kubectl, helm, terraform and tofu in the pinned versions; prints their paths
.PHONY: tools
tools:
	@$(CLUSTER_TOOL) tools

#### kubectl terrahalt

## plugin: the kubectl plugin for this machine, in dist/; put it on your PATH
.PHONY: plugin
plugin:
	@$(CLUSTER_TOOL) plugin

## plugin-dist: it for linux, darwin and windows, with checksums and a krew manifest, in dist/ (some minutes the first time)
.PHONY: plugin-dist
plugin-dist:
	@$(CLUSTER_TOOL) $(if $(PLUGIN_URL),--address $(PLUGIN_URL)) plugin-dist

#### The two commands to begin with

## demo: a cluster, the chart, a task that runs, a task that is cancelled (1 to 2 min; 12 the first time)
.PHONY: demo
demo:
	@$(PYTHON) -m examples.demo.demo

## demo-down: removes what the demo made, and the cluster
.PHONY: demo-down
demo-down: cluster-down

## test: everything that guards a change (24 min, 45 on a slow machine; 12 more the first time); leaves nothing running
.PHONY: test
test: $(VENV)/.complete
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m tests.everything

#### Parts of it

## lint: ruff, mypy strict, import contracts, that generated files equal their sources; gofmt and go vet if Go is there
.PHONY: lint
lint: $(VENV)/.complete
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=$(SOURCES) $(VENV)/bin/lint-imports --no-logo
	PYTHONPATH=$(SOURCES) $(VENV)/bin/python -m terrahalt_operator.api.generate --check
	@# The first time a minute of compiling, which the builds of these programs then do not do again.
	@$(VENV)/bin/python -m tests.cluster go-lint

## format: what ruff can mend by itself
.PHONY: format
format: $(VENV)/.complete
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

## generate: the CRDs, the charts' copies of them and docs/api.md, from the typed models
.PHONY: generate
generate: $(VENV)/.complete
	PYTHONPATH=$(SOURCES) $(VENV)/bin/python -m terrahalt_operator.api.generate

## test-unit: the pure cores and the protocol; no cluster, no terraform
.PHONY: test-unit
test-unit: $(VENV)/.complete
	$(VENV)/bin/pytest tests/repository tests/protocol tests/operator_core tests/agent tests/simulation

## test-terraform: the agent alone with a real terraform, or with ENGINE=tofu a real tofu
.PHONY: test-terraform
test-terraform: $(VENV)/.complete
	$(VENV)/bin/pytest tests/agent_terraform

## test-agent: the agent alone, with a real terraform and then with a real tofu (8 min)
.PHONY: test-agent
test-agent: $(VENV)/.complete
	@$(VENV)/bin/python -m tests.both_engines

## soak-agent: MINUTES of random runs of the agent alone, with random faults and cancels; SEED=n ROUND=k repeats one
.PHONY: soak-agent
soak-agent: $(VENV)/.complete
	$(VENV)/bin/pytest --quiet --capture=no tests/agent_terraform/soak --agent-minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

## soak-certificates: a run of MINUTES, and each minute another certificate of the operator's
.PHONY: soak-certificates
soak-certificates: $(VENV)/.complete
	$(VENV)/bin/pytest tests/agent_terraform/test_certificate_rotation.py --rotation-minutes $(MINUTES)

## test-e2e: the cluster suite, its pools with the engine of ENGINE; the cluster stays up
.PHONY: test-e2e
test-e2e: $(VENV)/.complete
	$(VENV)/bin/pytest tests/monitoring tests/kstatus tests/crds tests/chart tests/plugin
	$(VENV)/bin/pytest tests/e2e tests/soak -m 'not slow'

## recording: of the terminal in docs/kubectl.md, on the cluster, anew
.PHONY: recording
recording: $(VENV)/.complete
	TERRAHALT_RECORD=1 $(VENV)/bin/pytest tests/e2e/test_kubectl_plugin.py

## soak: random cancels, operator kills, drains, a full pool, and MINUTES of all troubles, on two nodes; SEED=n repeats
.PHONY: soak
soak: $(VENV)/.complete
	@$(CLUSTER_TOOL) --workers $(or $(WORKERS),1) up
	$(VENV)/bin/pytest tests/soak --cancels $(CANCELS) --operator-kills $(KILLS) --adopted $(ADOPTED) \
		--drained $(DRAINED) --pool-tasks $(POOL_TASKS) --pool-chart docs --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

## outages: AWAY_S seconds without an operator, then API_AWAY_S without an API server, with runs of all lengths (36 min)
.PHONY: outages
outages: $(VENV)/.complete
	@$(CLUSTER_TOOL) --workers $(or $(WORKERS),1) up
	$(VENV)/bin/pytest tests/e2e/test_outages.py --away $(AWAY_S) --api-away $(API_AWAY_S)

## upgrade: from 0.1.0 to this version, back and forth, and an uninstall, beside APPLIES runs (5 min; 2 more the first time)
.PHONY: upgrade
upgrade: $(VENV)/.complete
	@$(CLUSTER_TOOL) --workers $(or $(WORKERS),1) up
	$(VENV)/bin/pytest tests/e2e/test_helm.py --applies $(APPLIES)

## chaos: ROUNDS of every fault there is, several at once, on two nodes (500: about 2 h); SEED=n ROUND=first goes on or repeats
.PHONY: chaos
chaos: $(VENV)/.complete
	@$(CLUSTER_TOOL) --workers 1 up
	$(VENV)/bin/pytest --quiet --capture=no tests/soak/test_chaos.py --rounds $(or $(ROUNDS),$(if $(ROUND),1,500)) \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

## simulate: SEEDS=n histories of operators, agents and faults, judged by the invariants; SEED=first goes on or repeats
.PHONY: simulate
simulate: $(VENV)/.complete
	@PYTHONPATH=$(SOURCES) $(VENV)/bin/python -m tests.simulation --seeds $(SEEDS) \
		$(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) $(if $(MOVES),--moves)

## search: all that may come of at most FAULTS=k faults to two tasks of one workspace, two leaders and one agent (1)
.PHONY: search
search: $(VENV)/.complete
	@PYTHONPATH=$(SOURCES) $(VENV)/bin/python -m tests.simulation.search --faults $(or $(FAULTS),1) \
		$(if $(DEPTH),--depth $(DEPTH)) \
		$(if $(EVERY_ORDER),--every-order) $(if $(JOBS),--jobs $(JOBS))

## simulate-bugs: the first seed that finds each deliberate bug, for tests/simulation/bugs.py (an hour)
.PHONY: simulate-bugs
simulate-bugs: $(VENV)/.complete
	@PYTHONPATH=$(SOURCES) $(VENV)/bin/python -m tests.simulation.bugs

## bench: speed, throughput, cost and memory in one run, into docs/benchmarks.md; fails where a limit is missed (20 min)
.PHONY: bench
bench: $(VENV)/.complete
	$(VENV)/bin/python -m tests.bench --runs 100 --write docs/benchmarks.md $(if $(ONLY),--only $(ONLY)) \
		$(if $(RUNS),--rounds $(RUNS) --starts $(RUNS) --handovers $(RUNS))

## bench-agent: of it, the agent alone: frame -> SIGINT, exit -> report, idle; no cluster (RUNS of each, 200)
.PHONY: bench-agent
bench-agent: $(VENV)/.complete
	$(VENV)/bin/python -m tests.bench --only agent --runs $(or $(RUNS),200)

## bench-scale: one operator with TASKS tasks and a tenth as many simulated agents, into docs/benchmarks.md (an hour)
.PHONY: bench-scale
bench-scale: $(VENV)/.complete
	$(VENV)/bin/python -m tests.bench.scale --tasks $(or $(TASKS),10000) --steps $(or $(STEPS),3) \
		--write docs/benchmarks.md

## mutations: takes each guard of the agent out in turn; a test has to fail (5 min)
.PHONY: mutations
mutations: $(VENV)/.complete
	$(VENV)/bin/python -m tests.mutations

## requirements: pins every dependency anew, with hashes
.PHONY: requirements
requirements: $(VENV)/.complete
	cd requirements && for name in operator agent dev; do \
		../$(VENV)/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
			--no-emit-find-links --no-emit-index-url --no-emit-trusted-host --output-file $$name.txt $$name.in; \
	done
