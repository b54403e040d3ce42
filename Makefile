# Holdfast. `make help` lists what there is to do.

# A checkout may belong to another user than the one who builds; asking git for
# a version stamp would then stop the build.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

STATICCHECK_VERSION := v0.8.2
STATICCHECK := bin/tools/staticcheck-$(STATICCHECK_VERSION)
# The binary is stamped with the commit where git can say it.
STAMP := $(shell git status --porcelain >/dev/null 2>&1 && echo -buildvcs=true)

# The race detector needs a C compiler and multiplies the run time, so it sees
# what needs no servers; the full tests run without it.
RACE_PKGS ?= ./...
TEST_FLAGS ?=
BENCH_FLAGS ?=
CHAOS_FLAGS ?=
SEEDS ?= $(if $(filter-out 0,$(ALL)),5,1)

.DEFAULT_GOAL := help
.PHONY: help run demo bench bench-peers chaos bugs test check build fmt lint unit full tagged race

help: ## list what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## start everything on private servers in the foreground (FRESH=1: empty)
	@exec bin/holdfast up --install $(if $(filter-out 0,$(FRESH)),--fresh)

demo: build ## see holds created, cancelled, paid and refunded, then the proof
	@.ci/install servers
	@exec bin/holdfast demo

bench: build ## four minutes of load on a fresh stack: medians of three rounds against the goals
	@.ci/install servers
	@.ci/step "benchmark" bin/holdfast bench --embedded --shards-count 2 --suite quick --runs 3 $(BENCH_FLAGS)

bench-peers: ## Holdfast against dtm, River and asynq, side by side (about 30 minutes)
	@.ci/install servers
	@cd harness/peers && LOG_LEVEL=error go run -mod=mod . --duration 15s --pairs 3 $(BENCH_FLAGS)

chaos: ## a dozen faults, other ones every day, in about three minutes (ALL=1: every fault, 5 seeds, a cluster per core; SEEDS=20)
	@.ci/install servers
	@$(if $(filter-out 0,$(ALL)),.ci/install clocks || echo "== the clock of a server cannot be set here: three faults will be skipped")
	@go build $(STAMP) -trimpath -tags failpoints -o bin/holdfast-chaos ./cmd/holdfast
	@.ci/step "failure injection" bin/holdfast-chaos chaos run $(if $(filter-out 0,$(ALL)),--all --side-by-side $$(getconf _NPROCESSORS_ONLN),--time 3m) --seeds $(SEEDS) \
		--report chaos-report.html --json chaos-report.json $(CHAOS_FLAGS)

bugs: ## plant each known bug, show which check finds it first
	@.ci/install servers
	@go build $(STAMP) -trimpath -tags failpoints,planted -o bin/holdfast-chaos ./cmd/holdfast
	@.ci/step "planted bugs" bin/holdfast-chaos chaos bugs $(CHAOS_FLAGS)

test: ## everything that CI runs: lint, all tests on real servers, race
	@.ci/step "servers" .ci/install servers
	@$(MAKE) --no-print-directory lint full tagged race

check: lint unit ## lint and the tests that need no servers

build: ## build bin/holdfast
	@go build $(STAMP) -trimpath -o bin/holdfast ./cmd/holdfast

fmt: ## format the Go code
	@gofmt -l -w .

lint: $(STATICCHECK)
	@.ci/step "gofmt" sh -c 'out=$$(gofmt -l .); [ -z "$$out" ] || { echo "not formatted (make fmt mends it):"; echo "$$out"; exit 1; }'
	@.ci/step "go vet" go vet ./...
	@.ci/step "staticcheck $(STATICCHECK_VERSION)" $(STATICCHECK) ./...
	@if command -v golangci-lint >/dev/null; then .ci/step "golangci-lint" golangci-lint run ./...; \
	else echo "== golangci-lint is not installed here: skipped"; fi

unit:
	@.ci/step "tests without servers" go test -short $(TEST_FLAGS) ./...

full:
	@.ci/step "all tests, real servers" go test -count=1 -timeout 12m $(TEST_FLAGS) ./...

# What exists only behind build tags: crash points, and the planted bugs, of
# which it is checked here that each still fits the source.
tagged:
	@.ci/step "crash points" go test -count=1 -timeout 5m -tags failpoints -run 'Struck|Clock|Plan|Strikes|Exit|FailPoint' ./internal/failpoint ./participants ./cmd/holdfast
	@.ci/step "planted bugs fit the source" go test -count=1 -tags planted -run 'EveryEditApplies|RottenEdit' ./harness/planted

race:
	@if command -v "$${CC:-gcc}" >/dev/null; then \
		.ci/step "tests without servers, race detector" env CGO_ENABLED=1 go test -race -short -count=1 -timeout 5m $(RACE_PKGS); \
	else echo "== no C compiler here: the race detector is skipped (.ci/install compiler)"; fi

$(STATICCHECK):
	@echo "== fetching staticcheck $(STATICCHECK_VERSION)"
	@mkdir -p $(@D)
	@GOBIN=$(CURDIR)/$(@D) go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@mv $(@D)/staticcheck $@
