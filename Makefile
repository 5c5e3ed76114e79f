# Everything works on a bare Debian 12 machine, as root: the scripts under .ci
# install what is missing, idempotently.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export GOTOOLCHAIN := auto
# pacific: go-ceph for Ceph 16 and later; ceph_preview: progress of flattening.
export GOFLAGS := -buildvcs=false -tags=pacific,ceph_preview
VERSION := $(shell git describe --tags --always --dirty --abbrev=10 2>/dev/null || echo unknown)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -s -w -X github.com/debvisor/debvisor/shared/obs.Version=$(VERSION) -X github.com/debvisor/debvisor/shared/obs.Commit=$(COMMIT)
PROGRAMS := ./controlplane/cmd/debvisor-rpcd ./controlplane/cmd/hvctl ./agent/cmd/debvisor-agent
TOOLS := $(CURDIR)/build/tools
EVERYBODYS := /var/cache/debvisor# as in integration/machine/cache.go
UNIT := ./certs/... ./shared/... ./controlplane/... ./agent/... ./integration/imports/...

.PHONY: help deps tools build deb reproduce generate lint test machines unit e2e demo bench chaos fuzz lab lab-down clean

help: ## What there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

deps: ## Debian packages that building and testing need
	@.ci/deps

tools: deps ## golangci-lint, buf, gofumpt, protoc plugins and gofail, at the pinned versions
	@.ci/tools-build $(TOOLS)

build: deps ## bin/debvisor-rpcd, bin/debvisor-agent, bin/hvctl
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS)

deb: build ## build/deb: Debian packages of the three programs; docs/packages.md
	@.ci/nfpm-build $(TOOLS)
	@.ci/deb build/deb bin $(TOOLS)/nfpm

reproduce: deps ## Packages made twice from nothing are the same bytes, and lintian knows no error
	@.ci/reproduce

generate: tools ## Go code and the gateway's OpenAPI document from proto/
	@PATH=$(TOOLS):$$PATH .ci/generate .

lint: tools ## vet, golangci-lint, buf lint and breaking, generated code current
	@.ci/lint $(TOOLS)

machines: deps ## What the machines of tests with ZFS boot from: a kernel, built once on a host in 10 minutes
	@integration/machine/build.sh "$${DEBVISOR_CACHE:-$$(mkdir -p $(EVERYBODYS) 2>/dev/null && test -w $(EVERYBODYS) && echo $(EVERYBODYS) || echo build/cache)}"

unit: machines ## Unit tests with the race detector
	go test -race -timeout 20m $(UNIT)

e2e: build machines ## End-to-end and fault tests on real libvirt
	@.ci/failpoint-build
	DEBVISOR_BIN=$(CURDIR)/bin DEBVISOR_FAILPOINT_BIN=$(CURDIR)/build/failpoint/bin \
	  go test -timeout 65m -count=1 -parallel 4 -v ./integration/... 2>&1 | .ci/go-test-brief

test: unit e2e ## Every test

demo: build ## The main job: three replicas, two hypervisors, one live migration
	go run ./integration/lab/cmd/lab demo --bin bin

bench: build machines ## docs/benchmarks.md and build/bench.json, from what is measured
	go run ./integration/bench --bin bin

N ?= 5
CHAOS ?=
chaos: build machines ## The whole fault matrix N times, CHAOS="-seed 7 -budget 2h -resume" as wanted; docs/reliability.md
	@.ci/failpoint-build
	DEBVISOR_BIN=$(CURDIR)/bin DEBVISOR_FAILPOINT_BIN=$(CURDIR)/build/failpoint/bin go run ./integration/chaos -n $(N) $(CHAOS)

FUZZTIME ?= 30s
fuzz: deps ## Every fuzz target for FUZZTIME each
	@.ci/fuzz $(FUZZTIME)

MACHINES ?= 0
CEPH ?= 0
lab: build ## Keeps a lab up to play with; MACHINES=2 gives it two nodes with a ZFS pool each, CEPH=1 a Ceph cluster
	go run ./integration/lab/cmd/lab up --bin bin --machines $(MACHINES) --ceph=$(CEPH)

lab-down: ## Ends it
	go run ./integration/lab/cmd/lab down

clean: ## Removes bin and build
	rm -rf bin build
