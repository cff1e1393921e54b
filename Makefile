# `make` alone says what there is. What is built outside of target/ is kept in CACHE, which may be
# deleted at any time.

CACHE := $(abspath $(or $(OPENTUNNEL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/opentunnel-operator))
export OPENTUNNEL_CLUSTER_BIN := $(CACHE)/bin/cluster

CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

export OPENTUNNEL_PROMTOOL := $(CACHE)/bin/promtool
export OPENTUNNEL_HELM := $(CACHE)/bin/helm
export OPENTUNNEL_KUBECONFORM := $(CACHE)/bin/kubeconform
export OPENTUNNEL_GITOPS := $(CACHE)/bin/gitops

# Like the control plane, without C and with -trimpath: the standard library is compiled once for all.
GO := CGO_ENABLED=0 go -C

# Python environments. A change of its requirements makes another one.
PREPARE_PYTHON := dev/python/prepare
python = $(CACHE)/$(1)-$(shell cat $(2) $(PREPARE_PYTHON) | cksum | cut -d ' ' -f 1)
BOTOCORE_TESTS := crates/emulator/tests/botocore
BOTOCORE := $(call python,botocore,$(BOTOCORE_TESTS)/requirements.txt)
PYTHON_TOOLS := $(call python,python-tools,dev/python/tools.txt)

ACTIONLINT := $(CACHE)/bin/actionlint

# Its tag is the version that deploy/ names.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= opentunnel-operator:$(VERSION)
PROXY_IMAGE ?= opentunnel-proxy:$(VERSION)
EMULATOR_IMAGE ?= secure-tunneling-emulator:$(VERSION)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# One thing after the other, but for what is given to this: of it two at a time. What waits for the network or for a
# control plane, or has one thread, goes beside what computes.
TWO_AT_ONCE = $(MAKE) --no-print-directory -j2 AT_ONCE=1
ifndef AT_ONCE
.NOTPARALLEL:
endif

.PHONY: help docs demo build test test-demo test-programs test-model model matrix costs bench bench-proxy interop soak-proxy reloaders soak upgrade fuzz figures image image-proxy image-emulator install-yaml install-test helm fmt clippy deny promtool gitops go-test emulator-botocore cluster e2e clean prerequisites test-prerequisites

step = @printf '\n== %s\n'

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Built tools are kept in $(CACHE)"

demo: prerequisites ## Show the operator at work on a real API server (KEEP=1: and leave it running)
	+@$(TWO_AT_ONCE) cluster build
	@python3 -B dev/demo

# With a test, for its features of the dependencies: else cargo would build 45 of them once more for `make test`.
build:
	$(step) "cargo build"
	@cargo build --workspace --bins --test emulator

test: test-prerequisites fmt ## All that CI checks
	+@$(TWO_AT_ONCE) clippy cluster deny promtool gitops go-test install-test emulator-botocore test-demo
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
FUZZ_TARGETS ?= any_tunnel any_session
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_COVERAGE := -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: ## Show the operator any bytes as a Tunnel, the proxy any as its service, FUZZ_SECONDS=60 each (needs a C++ compiler)
	@for target in $(FUZZ_TARGETS); do \
		printf '\n== libFuzzer, %s, %s s\n' $$target $(FUZZ_SECONDS); \
		fuzz/run $$target "$(FUZZ_COVERAGE)" $(FUZZ_HOST) $(FUZZ_SECONDS); \
	done

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

docs: ## Write what is generated: flags.md, tunnel.md, the flags in proxy.md, the chart's values and CRD, deploy/gitops (tests compare them)
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-api reference_in_docs
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-operator --lib flags_in_docs
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-proxy --lib flags_in_docs
	@UPDATE_DOCS=1 $(GO) dev/install test -trimpath -count=1 -run 'TheCharts' .
	@UPDATE_DOCS=1 cargo test -q -p opentunnel-operator --lib test_data_of_the_gitops_tools
	@UPDATE_DOCS=1 $(GO) dev/gitops test -trimpath ./...

BUILD_IMAGE = for engine in docker podman buildah; do \
		if $$engine info >/dev/null 2>&1; then exec $$engine build $(BUILD_FLAGS) -t $(1) -f $(2) .; fi; \
	done; echo "docker, podman or buildah is needed, and running"; exit 1

image: ## Build the operator's image (IMAGE=name:tag, BUILD_FLAGS=... of docker, podman or buildah)
	@$(call BUILD_IMAGE,$(IMAGE),Dockerfile)

image-proxy: ## Build the proxy's image (PROXY_IMAGE=name:tag, BUILD_FLAGS=...)
	@$(call BUILD_IMAGE,$(PROXY_IMAGE),crates/proxy/Dockerfile)

# deploy/ with the image and the region, for what takes neither Kustomize nor Helm.
install-yaml: ## Write target/install.yaml, all of an installation in one file (AWS_REGION=..., IMAGE=name:tag; needs kubectl)
	@: "$${AWS_REGION:?is missing: say which region the operator serves, as make install-yaml AWS_REGION=eu-central-1}"
	@mkdir -p target/install
	@printf '%s\n' 'resources: [../../deploy]' 'configMapGenerator:' \
		"  - {name: opentunnel-operator, namespace: opentunnel-system, behavior: merge, literals: [AWS_REGION=$(AWS_REGION)]}" \
		'patches:' '  - target: {kind: Deployment, name: opentunnel-operator}' \
		"    patch: '- {op: replace, path: /spec/template/spec/containers/0/image, value: \"$(IMAGE)\"}'" \
		>target/install/kustomization.yaml
	@kubectl kustomize target/install >target/install.yaml
	@echo "kubectl apply -f target/install.yaml"

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

advisories: $(CARGO_DENY) ## Check the dependencies for known vulnerabilities (fetches RustSec's database, which changes daily)
	$(step) "cargo deny check advisories"
	@$(CARGO_DENY) check advisories

# A debug build: a minute, where an optimized one takes several, for a tool that then runs 2 s.
$(CARGO_DENY):
	$(step) "cargo install cargo-deny $(CARGO_DENY_VERSION): about a minute, the first time"
	@CARGO_PROFILE_DEV_DEBUG=false cargo install --debug --locked cargo-deny \
		--version $(CARGO_DENY_VERSION) --root $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)

# Without service discovery: it is most of Prometheus' modules, and no test discovers anything.
promtool: ## Build Prometheus' promtool, which tests take for metrics, alerts and the dashboard (about 2 minutes, the first time)
	$(step) "promtool"
	@$(GO) dev/promtool build -trimpath -tags remove_all_sd -ldflags '-s -w' -o $(OPENTUNNEL_PROMTOOL) \
		github.com/prometheus/prometheus/cmd/promtool
	@echo "export OPENTUNNEL_PROMTOOL=$(OPENTUNNEL_PROMTOOL)"

gitops: ## Try deploy/gitops with the libraries of Flux and Argo CD, and build them as a program, for tests
	$(step) "dev/gitops"
	@$(GO) dev/gitops build -trimpath -o $(OPENTUNNEL_GITOPS) .
	@$(GO) dev/gitops vet -trimpath ./...
	@$(GO) dev/gitops test -trimpath ./...
	@echo "export OPENTUNNEL_GITOPS=$(OPENTUNNEL_GITOPS)"

cluster: ## Build the Kubernetes control plane of demo and tests (about 6 minutes, the first time; KUBERNETES=1.33: another one)
	$(step) "Kubernetes control plane"
	@$(GO) dev/cluster build -trimpath -o $(OPENTUNNEL_CLUSTER_BIN) .
	@$(OPENTUNNEL_CLUSTER_BIN) build

# Not in `make test`: it takes root and containerd. Where they are missing it ends with 77, an error for make.
e2e: ## Try the operator on a real node, as root, with containerd: images, kubelet, Pods (docs/local-cluster.md)
	@python3 -B dev/e2e check
	$(step) "Kubernetes, with kubelet, scheduler and kube-proxy"
	@$(GO) dev/cluster build -trimpath -o $(OPENTUNNEL_CLUSTER_BIN) .
	@$(OPENTUNNEL_CLUSTER_BIN) build --node
	@$(MAKE) --no-print-directory helm build
	@python3 -B dev/e2e

go-test: cluster
	$(step) "go vet, go test"
	@$(GO) dev/cluster vet -trimpath ./...
	@$(GO) dev/cluster test -trimpath -timeout 30m ./...

helm: ## Build helm and kubeconform (about 2 minutes, the first time)
	$(step) "helm, kubeconform"
	@$(GO) dev/install build -trimpath -o $(CACHE)/bin/ helm.sh/helm/v4/cmd/helm github.com/yannh/kubeconform/cmd/kubeconform

# -count=1: Go does not see that the tests' programs read deploy/.
install-test: cluster helm ## Try each way to install: Kustomize, the Helm chart, install.yaml
	$(step) "dev/install: Kustomize, the Helm chart"
	@$(GO) dev/install vet -trimpath ./...
	@$(GO) dev/install test -trimpath -count=1 ./...

# What a new user sees first must not break unseen.
test-demo: build cluster
	$(step) "the demo"
	@python3 -B dev/demo

emulator-botocore: build $(BOTOCORE) ## Try the emulator with AWS's own Python client
	$(step) "emulator, by botocore"
	@EMULATOR=$$(pwd)/target/debug/secure-tunneling-emulator $(BOTOCORE)/bin/python3 -B $(BOTOCORE_TESTS)

$(BOTOCORE):
	$(step) "boto3 in a Python environment: half a minute, the first time"
	@$(PREPARE_PYTHON) $(BOTOCORE_TESTS)/requirements.txt $@

$(PYTHON_TOOLS):
	$(step) "mkdocs and zizmor in a Python environment: half a minute, the first time"
	@$(PREPARE_PYTHON) dev/python/tools.txt $@

# Some seconds.
test: site workflows release-check
.PHONY: site workflows release-check sbom advisories

# Strict: a link or an anchor that leads nowhere is an error. (Not --quiet: MkDocs would not count what it does not tell. The
# variable keeps an advertisement for MkDocs' successors away.)
VERBS := get|describe|delete|wait|annotate|label|patch|edit|events|show|watch|json
site: $(PYTHON_TOOLS) ## Build the documentation as a site, into target/site, and check its links (SITE_REPOSITORY=where its code is)
	$(step) "site"
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_TOOLS)/bin/python3 -B -m mkdocs build
	@if git grep -nE 'kubectl( -[^ ]+( [^ ]+)?)*[ .]($(VERBS))([ (][^|`]*)?[ ,"(=]tunnels?([ ,"/]|$$)' -- README.md docs deploy dev/demo 'crates/*/README.md' .github; then \
		echo 'the above may be another vendor'"'"'s resource (docs/troubleshooting.md): write tun, or tunnels.opentunnel.dev'; exit 1; fi
	@echo "target/site/index.html"

# Without what actionlint uses where it finds it: its result must be the same on every machine.
workflows: $(PYTHON_TOOLS) ## Lint .github
	$(step) "actionlint, zizmor"
	@$(GO) dev/actionlint build -trimpath -o $(ACTIONLINT) github.com/rhysd/actionlint/cmd/actionlint
	@$(ACTIONLINT) -shellcheck= -pyflakes=
	@$(PYTHON_TOOLS)/bin/zizmor --offline --quiet --strict-collection .github

CARGO_CYCLONEDX_VERSION := 0.5.9
CARGO_CYCLONEDX := $(CACHE)/cargo-cyclonedx-$(CARGO_CYCLONEDX_VERSION)/bin/cargo-cyclonedx

# cargo-cyclonedx writes each beside its Cargo.toml. Without what only builds and tests are made of.
sbom: $(CARGO_CYCLONEDX) ## Write what each program is made of, as CycloneDX, into target/sbom
	$(step) "cargo cyclonedx"
	@$(CARGO_CYCLONEDX) cyclonedx --quiet --format json --spec-version 1.5 --describe crate --no-build-deps --target x86_64-unknown-linux-gnu
	@mkdir -p target/sbom
	@mv opentunnel-operator.cdx.json crates/proxy/opentunnel-proxy.cdx.json \
		crates/emulator/secure-tunneling-emulator.cdx.json target/sbom/
	@rm crates/api/opentunnel-api.cdx.json

$(CARGO_CYCLONEDX):
	$(step) "cargo install cargo-cyclonedx $(CARGO_CYCLONEDX_VERSION): some minutes, the first time"
	@CARGO_PROFILE_DEV_DEBUG=false cargo install --debug --locked cargo-cyclonedx \
		--version $(CARGO_CYCLONEDX_VERSION) --root $(CACHE)/cargo-cyclonedx-$(CARGO_CYCLONEDX_VERSION)

release-check: ## Check that the version is the same everywhere (TAG=v0.1.0: and that a release of that tag may be made)
	$(step) "release-check"
	@dev/release check $(TAG)

clean: ## Remove what cargo has built
	@cargo clean

prerequisites:
	@dev/prerequisites

test-prerequisites:
	@dev/prerequisites test
