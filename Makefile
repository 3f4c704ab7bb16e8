# One line per target: make help.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
# Installing packages and running tests side by side only makes both slower and their output unreadable.
.NOTPARALLEL:

# Not on root's PATH after sudo: the usual place of Go, and the tools of the system administrator.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
# The checkout may belong to another user, which makes Go's own stamping of commits fail; version below stands in.
export GOFLAGS := $(strip $(filter-out -buildvcs%,$(GOFLAGS)) -buildvcs=false)
# A program with the race detector sleeps for a second before it exits, in case other threads still race (the default of
# atexit_sleep_ms, https://go.dev/doc/articles/race_detector#Options). The end-to-end tests start thousands of them.
export GORACE ?= atexit_sleep_ms=50
# libseccomp is a C library.
export CGO_ENABLED := 1

GO := go
MODULE := github.com/pghardend/pghardend
VERSION := $(or $(shell git -c safe.directory='*' describe --always --dirty --tags 2>/dev/null),devel)
LDFLAGS := -X $(MODULE)/internal/cli.version=$(VERSION)

GOLANGCI_VERSION := v2.15.0
GOLANGCI := build/bin/golangci-lint-$(GOLANGCI_VERSION)
NFPM_VERSION := v2.45.0
NFPM := build/bin/nfpm-$(NFPM_VERSION)

UNIT = $$($(GO) list ./... | grep -vE '^$(MODULE)/test/(e2e|package|selinux|suites|versions|vm$$)')
E2E := ./test/e2e/...
SUITES := ./test/suites/...
VM := ./test/vm
VERSIONS := ./test/versions/...
# RUN=TestF28 picks end-to-end tests by name, FUZZTIME=5m is the time for each fuzz target, KEEP=1 leaves the demo's namespaces, PART=idle is one part of bench.
# PARALLEL is how many of the end-to-end tests that mostly wait run at once, after the others; each needs a third of a core.
RUN ?=
PARALLEL ?= 3
FUZZTIME ?= 20s
KEEP ?=
PART ?=
# TESTING=1 has test-versions run Debian testing as well, which changes from day to day.
TESTING ?=

.PHONY: help root deps deps-build deps-selinux deps-unit build selinux package test test-unit test-e2e test-package test-selinux test-postgres test-versions test-vm lint fuzz bench demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## install the Debian packages that are missing (as root); changes nothing when none is
	@scripts/deps.sh all

root:
	@(( EUID == 0 )) || { echo 'this needs root: it makes network namespaces and starts services as other users' >&2; exit 1; }

deps-build:
	@scripts/deps.sh build

deps-selinux:
	@scripts/deps.sh selinux

deps-unit:
	@scripts/deps.sh unit

build: deps-build ## compile build/pghardend
	@mkdir -p build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/pghardend ./cmd/pghardend

selinux: deps-selinux ## compile build/selinux/pghardend.pp, the SELinux module
	@scripts/selinux.sh module

test: deps ## all tests: test-unit, test-selinux, test-e2e, then test-package (as root)
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-selinux
	@$(MAKE) --no-print-directory test-e2e
	@$(MAKE) --no-print-directory test-package

test-unit: deps-unit ## unit tests with the race detector, then the coverage of pkg/; any user
	@mkdir -p build
	$(GO) test -race -timeout 30m -coverprofile=build/cover.out $(UNIT)
	@scripts/coverage.sh build/cover.out $(MODULE)/pkg

test-e2e: root deps ## end-to-end tests in network namespaces (as root); RUN=TestF28 picks by name; all output: build/e2e.log
	@mkdir -p build
	$(GO) test -race -count=1 -timeout 60m -parallel $(PARALLEL) -v $(if $(RUN),-run '$(RUN)') $(E2E) 2>&1 | tee build/e2e.log | scripts/condense.sh

test-selinux: deps-selinux ## what the SELinux module must never allow, in Debian's policy; any user
	@scripts/selinux.sh store
	$(GO) test -count=1 $(if $(RUN),-run '$(RUN)') ./test/selinux

test-package: root deps $(NFPM) ## the packages: reproducible, clean, and their life under a systemd in namespaces (as root)
	$(GO) test -count=1 -timeout 30m $(if $(RUN),-run '$(RUN)') ./test/package/...

test-postgres: root deps ## PostgreSQL's own tests, replication and more, confined and not (as root); all output: build/postgres.log
	@mkdir -p build
	@scripts/postgres-suites.sh >/dev/null
	$(GO) test -race -count=1 -timeout 30m -v $(if $(RUN),-run '$(RUN)') $(SUITES) 2>&1 | tee build/postgres.log | scripts/condense.sh

test-versions: root ## the same work with PostgreSQL 14, 16, 17 and 18 on Debian 13 (as root); TESTING=1: Debian testing too
	@scripts/deps.sh versions
	@mkdir -p build
	TESTING=$(TESTING) $(GO) test -race -count=1 -timeout 60m -v $(if $(RUN),-run '$(RUN)') $(VERSIONS) 2>&1 | tee build/versions.log | scripts/condense.sh

test-vm: root $(NFPM) ## the agent on booted Debian 12 and 13 machines, under systemd (as root); scripts/vm is for looking around; all output: build/vm.log
	@scripts/deps.sh vm
	@mkdir -p build
	$(GO) test -count=1 -timeout 60m -parallel 2 -v $(if $(RUN),-run '$(RUN)') $(VM) 2>&1 | tee build/vm.log | scripts/condense.sh

lint: deps-build $(GOLANGCI) ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l .); [[ -z $$unformatted ]] || { echo "not formatted, run gofmt -w on:" $$unformatted >&2; exit 1; }
	$(GO) vet ./...
	$(GOLANGCI) config verify
	$(GOLANGCI) run ./...

# Named after its version: another version here is another file, so it is built anew.
$(GOLANGCI):
	@mkdir -p build/bin
	GOBIN=$(CURDIR)/build/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv build/bin/golangci-lint $@

fuzz: deps-build ## every fuzz target for FUZZTIME (20s)
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

bench: root deps ## what it costs, measured in namespaces (as root, 17 minutes); PART=window picks: start, members, change, window, idle, storm, pgbench, filter, launch
	@$(GO) run ./test/bench $(PART)

demo: root deps build ## five VMs and their neighbours: who reaches whom, a reverse shell, a flush (as root); KEEP=1 keeps them
	@KEEP=$(KEEP) $(GO) run ./test/demo

package: deps-build $(NFPM) ## build/packages/*.deb and *.rpm
	@NFPM=$(NFPM) GO=$(GO) scripts/package.sh

# Named after its version, like the linter.
$(NFPM):
	@mkdir -p build/bin
	GOBIN=$(CURDIR)/build/bin $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	@mv build/bin/nfpm $@

clean: ## remove build/
	rm -rf build
