# `make` alone says what there is. What is built outside of target/ is kept in CACHE, which may be
# deleted at any time.

CACHE := $(abspath $(or $(OPENTUNNEL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/opentunnel-operator))
export OPENTUNNEL_CLUSTER_BIN := $(CACHE)/bin/cluster

CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

export OPENTUNNEL_PROMTOOL := $(CACHE)/bin/promlint

# Like the control plane, without C and with -trimpath: the standard library is compiled once for all.
GO := CGO_ENABLED=0 go -C

# A change of its requirements makes another one.
BOTOCORE_TESTS := crates/emulator/tests/botocore
BOTOCORE := $(CACHE)/botocore-$(shell cat $(BOTOCORE_TESTS)/requirements.txt $(BOTOCORE_TESTS)/prepare | cksum | cut -d ' ' -f 1)

# Its tag is the version that deploy/ names.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= opentunnel-operator:$(VERSION)
PROXY_IMAGE ?= opentunnel-proxy:$(VERSION)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# One thing after the other, but for what is given to this: of it two at a time. What waits for the network or for a
# control plane, or has one thread, goes beside what computes.
TWO_AT_ONCE = $(MAKE) --no-print-directory -j2 AT_ONCE=1
ifndef AT_ONCE
.NOTPARALLEL:
endif

.PHONY: help docs demo build test test-programs test-model model matrix costs bench bench-proxy interop soak-proxy reloaders soak upgrade fuzz figures image image-proxy fmt clippy deny promtool go-test emulator-botocore cluster clean prerequisites test-prerequisites

step = @printf '\n== %s\n'

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Built tools are kept in $(CACHE)"

demo: prerequisites ## Show the operator at work on a real API server (KEEP=1: and leave it running)
	+@$(TWO_AT_ONCE) cluster build
	@python3 -B dev/demo

# With a test, for its features of the dependencies: else cargo would build 45 of them once more for `make test`.
build:
	$(step) "cargo build"
	@cargo build --workspace --bins --test emulator

test: test-prerequisites fmt ## All that CI checks
	+@$(TWO_AT_ONCE) clippy cluster deny promtool go-test emulator-botocore
	$(step) "cargo test"
	@cargo test --workspace --lib --bins --tests --no-run
	@cargo test $(OPTIMIZED) --test model --no-run
	+@$(TWO_AT_ONCE) test-programs test-model

# The tests on the control plane wait more than they compute: more threads than cores. (There are no doc tests.)
test-programs:
	@RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} cargo test --workspace --no-fail-fast --lib --bins \
		--test cluster --test hostile --test emulator --test client --test tunnel

# The dependencies stay as they are; the checker itself is six times as fast, which pays for one more build.
OPTIMIZED := --config profile.dev.package.opentunnel-operator.opt-level=3

# The model computes while the others wait.
test-model:
	@nice -n 19 cargo test $(OPTIMIZED) --test model

model: ## Model-check decide and the election further than `make test` does (half an hour, some GB of memory)
	@MODEL_LARGE=1 cargo test $(OPTIMIZED) --test model -- --nocapture
	@cargo test $(OPTIMIZED) --lib leader::candidate -- --nocapture --include-ignored

# All of it; `make test` runs a part of what takes minutes, which is left out here.
matrix: cluster ## Print the matrix: each life of a Tunnel with every fault at every request (docs/testing.md)
	@cargo test --test cluster -- matrix:: stale:: outage:: restore:: --nocapture --include-ignored \
		--skip main_lives --skip recovery_of_a_tunnel --skip late_or_not --skip for_a_while --skip comes_back_changes

costs: cluster ## What 1,000 open Tunnels cost at rest (6 minutes)
	@cargo test --test cluster -- costs::a_thousand --nocapture --include-ignored

# The operator as `cargo build --release` makes it, the program that measures as a test's.
bench: cluster ## What a fleet costs, in a table (FLEET_TUNNELS="100 1000", FLEET_PEER=another operator: docs/performance.md)
	@cargo build --release --bin opentunnel-operator
	@OPENTUNNEL_OPERATOR_BIN=$${OPENTUNNEL_OPERATOR_BIN:-$$PWD/target/release/opentunnel-operator} \
		cargo bench --profile dev --bench fleet

# cargo runs it in the folder of its package: paths are made absolute. 2,000 clients and their servers are more files than
# many a system gives a program at first.
bench-proxy: ## What a tunnel's throughput, echo and memory are beside this machine's bound (LOCALPROXY=AWS's program: docs/performance.md)
	@cargo build --release -p secure-tunneling-emulator --bin secure-tunneling-emulator
	@ulimit -n $$(ulimit -Hn); \
	$(foreach name,LOCALPROXY BENCH_JSON,$(if $($(name)),$(name)=$(abspath $($(name))))) \
		cargo bench -p opentunnel-proxy --bench tunnel

# Programs of others, which nothing here builds.
reloaders: cluster ## Try docs/consumers.md with reloaders that you have: OPENTUNNEL_RELOADER=path, OPENTUNNEL_WAVE=path
	@cargo test --test cluster -- consumers::reloaders --nocapture --ignored

# libFuzzer without cargo-fuzz, which wants a nightly compiler: all that it needs is LLVM's coverage, by flags that
# a stable one takes. The sanitizers, which do need nightly, look for what a program without `unsafe` has not.
FUZZ_SECONDS ?= 60
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_COVERAGE := -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: ## Show the operator any bytes as a Tunnel, for FUZZ_SECONDS=60 (needs a C++ compiler; the first build takes minutes)
	$(step) "libFuzzer, $(FUZZ_SECONDS) s"
	@fuzz/run "$(FUZZ_COVERAGE)" $(FUZZ_HOST) $(FUZZ_SECONDS)

soak: cluster ## 200 Tunnels, two replicas, random faults and kills for 20 minutes (SOAK_SEED, SOAK_TUNNELS, SOAK_SECONDS)
	@SOAK_TUNNELS=$${SOAK_TUNNELS:-200} SOAK_SECONDS=$${SOAK_SECONDS:-1200} \
		cargo test --test cluster -- soak::the_promise_holds_under --nocapture

# The last release: a tag or commit of this repository, built in a folder of its own, or a program that you have.
PREVIOUS ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
upgrade: cluster ## Roll the last release and this one forward and back under a soak: PREVIOUS=tag-or-commit, or OPENTUNNEL_PREVIOUS_BIN=path
	@previous="$(abspath $(OPENTUNNEL_PREVIOUS_BIN))"; \
	if [ -z "$$previous" ]; then \
		test -n "$(PREVIOUS)" || { echo "say which release was the last: make upgrade PREVIOUS=tag-or-commit"; exit 1; }; \
		source=target/previous/source; rm -rf $$source; mkdir -p $$source; \
		git archive "$(PREVIOUS)" | tar -x -C "$$source"; \
		cargo build --locked --manifest-path "$$source/Cargo.toml" --target-dir target/previous --bin opentunnel-operator; \
		previous="$$PWD/target/previous/debug/opentunnel-operator"; \
	fi; \
	OPENTUNNEL_PREVIOUS_BIN="$$previous" cargo test --test cluster -- soak::the_promise_holds_while_releases --nocapture --ignored

# AWS's own program, which nothing here builds, at either end. What it is expected not to do is told as a table; the
# tests have it in crates/proxy/tests/tunnel/support/interop.rs.
interop: ## Drive AWS's own local proxy as either end of a tunnel with the proxy's tests: LOCALPROXY=/path/to/localproxy
	@test -x "$(LOCALPROXY)" || { echo "say where AWS's program is: make interop LOCALPROXY=/path/to/localproxy"; exit 1; }
	@mkdir -p target
	@for side in source destination; do \
		printf '\n== AWS'"'"'s program as the %s\n' $$side; \
		log=target/interop-$$side.log; \
		LOCALPROXY="$(abspath $(LOCALPROXY))" LOCALPROXY_SIDE=$$side cargo test -p opentunnel-proxy --test tunnel -- \
			--show-output >$$log || { sed -n '/^failures:/,$$p' $$log; exit 1; }; \
		sed -n 's/^interop: \(.*\)/| \1 |/p' $$log | sort; \
		grep '^test result' $$log; \
	done

soak-proxy: ## 200 connections through a tunnel with cuts, rotations, replacements, kills (PROXY_SOAK_SECONDS=1800, PROXY_SOAK_SEED)
	@PROXY_SOAK_SECONDS=$${PROXY_SOAK_SECONDS:-1800} \
		cargo test -p opentunnel-proxy --test tunnel -- soak:: --ignored --nocapture

# What the tests print as "figure: what | how much". All that they print is kept: a failure is not to be lost.
FIGURES ?= test
figures: ## Print as a table what was gone through (FIGURES="model matrix fuzz soak": by the long runs; target/figures.log has all)
	@mkdir -p target
	@RUST_TEST_NOCAPTURE=1 $(MAKE) --no-print-directory $(FIGURES) 2>&1 | tee target/figures.log | awk '\
		BEGIN { print "| what | figures |\n|---|---|" } \
		sub(/.*figure: /, "") { print "| " $$0 " |"; fflush() }'

docs: ## Write what is generated of docs/: flags.md, tunnel.md, the flags in proxy.md (tests compare them)
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-api reference_in_docs
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-operator --lib flags_in_docs
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-proxy --lib flags_in_docs

BUILD_IMAGE = for engine in docker podman buildah; do \
		if $$engine info >/dev/null 2>&1; then exec $$engine build $(BUILD_FLAGS) -t $(1) -f $(2) .; fi; \
	done; echo "docker, podman or buildah is needed, and running"; exit 1

image: ## Build the operator's image (IMAGE=name:tag, BUILD_FLAGS=... of docker, podman or buildah)
	@$(call BUILD_IMAGE,$(IMAGE),Dockerfile)

image-proxy: ## Build the proxy's image (PROXY_IMAGE=name:tag, BUILD_FLAGS=...)
	@$(call BUILD_IMAGE,$(PROXY_IMAGE),crates/proxy/Dockerfile)

fmt: ## Check the format of the code (cargo fmt and gofmt -w put it right)
	$(step) "cargo fmt, gofmt"
	@cargo fmt --all --check
	@wrong=$$("$$(go env GOROOT)/bin/gofmt" -l dev); \
	if [ -n "$$wrong" ]; then echo "not formatted, see gofmt -w: $$wrong"; exit 1; fi

clippy: ## Lint the Rust code
	$(step) "cargo clippy"
	@cargo clippy --workspace --all-targets -- -D warnings

deny: $(CARGO_DENY) ## Check licences and sources of the dependencies, and that `make fuzz` has the same
	$(step) "cargo deny"
	@$(CARGO_DENY) check -D warnings licenses bans sources
	@cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

# A debug build: a minute, where an optimized one takes several, for a tool that then runs 2 s.
$(CARGO_DENY):
	$(step) "cargo install cargo-deny $(CARGO_DENY_VERSION): about a minute, the first time"
	@CARGO_PROFILE_DEV_DEBUG=false cargo install --debug --locked cargo-deny \
		--version $(CARGO_DENY_VERSION) --root $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)

promtool: ## Build what lints metrics as `promtool check metrics` does, for a test (which takes promtool itself, too)
	$(step) "dev/promlint"
	@$(GO) dev/promlint build -trimpath -o $(OPENTUNNEL_PROMTOOL) .
	@echo "export OPENTUNNEL_PROMTOOL=$(OPENTUNNEL_PROMTOOL)"

cluster: ## Build the Kubernetes control plane of demo and tests (about 6 minutes, the first time)
	$(step) "Kubernetes control plane"
	@$(GO) dev/cluster build -trimpath -o $(OPENTUNNEL_CLUSTER_BIN) .
	@$(OPENTUNNEL_CLUSTER_BIN) build

go-test: cluster
	$(step) "go vet, go test"
	@$(GO) dev/cluster vet -trimpath ./...
	@$(GO) dev/cluster test -trimpath -timeout 30m ./...

emulator-botocore: build $(BOTOCORE) ## Try the emulator with AWS's own Python client
	$(step) "emulator, by botocore"
	@EMULATOR=$$(pwd)/target/debug/secure-tunneling-emulator $(BOTOCORE)/bin/python3 -B $(BOTOCORE_TESTS)

$(BOTOCORE):
	$(step) "boto3 in a Python environment: half a minute, the first time"
	@$(BOTOCORE_TESTS)/prepare $@

clean: ## Remove what cargo has built
	@cargo clean

prerequisites:
	@dev/prerequisites

test-prerequisites:
	@dev/prerequisites test
