# fleet: `make help` lists what there is.

GO             ?= go
BIN            := $(CURDIR)/bin
TOOLS          := $(BIN)/tools
VERSION        ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)
TEST_TIMEOUT   ?= 9m
RACE_TIMEOUT   ?= 25m
FUZZTIME       ?= 60s
LAB_RUN        ?= .
BENCH          ?= .
BENCHTIME      ?= 5s
BENCH_PACKAGES ?= ./node

# The linter's version is part of the source: another one finds other things.
LINT_VERSION := v2.15.0
GOLANGCI     ?= $(TOOLS)/golangci-lint-$(LINT_VERSION)

# One static binary; the same source gives the same bytes in any directory.
export CGO_ENABLED ?= 0
GOBUILD := $(GO) build -trimpath -buildvcs=false -ldflags "-X main.version=$(VERSION)"

.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-12s %s\n", $$1, $$2 }'

.PHONY: build
build: ## build bin/fleet
	$(GOBUILD) -o $(BIN)/fleet .

.PHONY: demo
demo: build ## start five nodes on loopback and run a command on all (DEMO_ONCE=1 stops by itself)
	FLEET=$(BIN)/fleet scripts/demo.sh

.PHONY: test
test: ## vet and test everything; under 10 minutes on 2 cores
	$(GO) vet ./...
	$(GO) vet -tags lab ./scripts/lab/...
	$(GO) test -timeout $(TEST_TIMEOUT) ./...

.PHONY: test-race
test-race: ## test everything under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout $(RACE_TIMEOUT) ./...

# The fault programme: what docs/reliability.md reports. All of it takes less than
# an hour on 2 cores; each part runs alone. ROUNDS=1 is the quick form for CI.
#   ROUNDS       rounds of scripts/faults.sh, 3
#   KILLS        in each cell of the kill table, in virtual time
#   FAULTS       of the quorum, in virtual time, and on how many VOTERS (1000 is the full form)
#   REAL_KILLS   in each cell, of real processes
#   REAL_FAULTS  of real voters
#   SEED         repeats the schedules of an earlier run, which printed it
KILLS       ?= 20
FAULTS      ?= 100
VOTERS      ?= 5
REAL_KILLS  ?= 3
REAL_FAULTS ?= 24
FAULTS_TEST  = FLEET_SEED=$(SEED) $(GO) test -vet=off -count=1 -timeout 60m -v

.PHONY: test-faults
test-faults: test-faults-loopback test-faults-processes test-faults-bubble ## leaders and hosts killed, paused and cut off (ROUNDS=1 is quick; see the Makefile)

.PHONY: test-faults-loopback
test-faults-loopback: build ## real processes on loopback: kill -9 of the leader and of agents (ROUNDS=3)
	ROUNDS=$(or $(ROUNDS),3) scripts/faults.sh

.PHONY: test-faults-processes
test-faults-processes: ## real processes ended at exact steps of a command, and paused (REAL_KILLS=3 REAL_FAULTS=24)
ifeq ($(ROUNDS),1)
	FLEET_KILLS=1 FLEET_FAULTS=4 $(FAULTS_TEST) -short -tags faults ./scripts/faults
else
	FLEET_KILLS=$(REAL_KILLS) FLEET_FAULTS=$(REAL_FAULTS) $(FAULTS_TEST) -tags faults ./scripts/faults
endif

.PHONY: test-faults-bubble
test-faults-bubble: ## the same in virtual time, many times (KILLS=20 FAULTS=100 VOTERS=5); with ROUNDS=1 nothing: make test has it
ifneq ($(ROUNDS),1)
	FLEET_KILLS=$(KILLS) $(FAULTS_TEST) -run '^TestKillTable(Relay)?$$' ./node
	FLEET_FAULTS=$(FAULTS) FLEET_VOTERS=$(VOTERS) $(FAULTS_TEST) -run '^TestHistories$$' ./node
endif

.PHONY: test-upgrade
test-upgrade: ## real processes of this version and the one before in one fleet, exchanged in random orders (ORDERS=2 SEED=1)
	$(GO) test -count=1 -tags upgrade -timeout 30m -v -run '^TestMixedVersions$$' ./scripts/lab

.PHONY: corpus
corpus: ## at a release: keep the golden bytes of every wire format under its VERSION, to be read for ever
	scripts/upgrade/corpus.sh $(VERSION)

.PHONY: test-planted
test-planted: ## build with one planted bug at a time: the test that must find it fails, or this does
	GO="$(GO)" scripts/planted.sh

.PHONY: test-process
test-process: ## as root: ROUNDS=50 ends of each tree of processes, OUTPUT_MB=10240 of each output
	FLEET_ROUNDS=$(or $(ROUNDS),50) $(GO) test -count=1 -timeout 60m -v -run '^TestTorture$$' ./node/process
	FLEET_OUTPUT_MB=$(or $(OUTPUT_MB),10240) $(GO) test -count=1 -timeout 60m -v -run '^TestAnyOutput$$' ./node/runcmd

.PHONY: test-scale
test-scale: ## rings of hundreds and a day of partition in virtual time, floods of a minute (about twenty minutes on 2 cores)
	FLEET_SCALE=1 $(GO) test -count=1 -p 1 -timeout 60m -v -run '^(TestLongPartition|TestScale.*|TestFlappingHost|TestFlood)$$' ./gossip ./node ./node/devfleet

.PHONY: test-windows
test-windows: ## what Wine can run of the Windows program; says so where there is no Wine
	scripts/wine/test.sh

.PHONY: test-lab
test-lab: ## hosts in namespaces, cut, slowed, filled and killed; the first hour (root; LAB_RUN=TestFaults)
	LAB=1 $(GO) test -vet=off -count=1 -tags lab -timeout 30m -parallel 4 -run '$(LAB_RUN)' ./scripts/lab/...

.PHONY: lab-clean
lab-clean: ## remove what a lab left that could not remove itself
	scripts/lab/clean.sh --dead

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 60s each)
	GO="$(GO)" FUZZTIME="$(FUZZTIME)" scripts/fuzz.sh

.PHONY: bench
bench: ## the figures of docs/performance.md
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m $(BENCH_PACKAGES)

.PHONY: bench-idle
bench-idle: build ## what a host costs while nothing happens, in a ring of 100 (root; about seven minutes)
	FLEET=$(BIN)/fleet $(GO) test -v -count=1 -tags idle -run '^TestIdle$$' -timeout 30m ./node/devfleet

.PHONY: bench-rivals
bench-rivals: build ## fleet beside ClusterShell, pdsh, ansible, serf and a bare server (root; TARGETS="100 200" ROUNDS=5)
	FLEET=$(BIN)/fleet scripts/bench/rivals.sh

.PHONY: packages
packages: ## deb and rpm for amd64 and arm64 into dist/, with SHA256SUMS (CHECK=1 builds twice and compares)
	VERSION=$(VERSION) scripts/packages.sh

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint, pinned; installed into bin/tools when absent
	$(GOLANGCI) run ./...

$(TOOLS)/golangci-lint-$(LINT_VERSION):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(TOOLS)/golangci-lint $@

.PHONY: clean
clean: ## remove bin and the test cache of this module
	rm -rf $(BIN) coverage.out
	$(GO) clean -testcache
