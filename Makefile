# Two commands matter: `make run` and `make test`. Both set up what they need first.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
WORKERS ?= 2

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: run
run: ## the gateway: in front of GITLAB_URL when that is set, else of the bundled demo GitLab
	@.ci/setup run
	@if [ -n "$$GITLAB_URL" ]; then exec $(BIN)/gitlab-gateway serve --upstream "$$GITLAB_URL" $(ARGS); \
	else exec $(BIN)/gitlab-gateway demo $(ARGS); fi

.PHONY: test
test: check ## every check and every test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

.PHONY: check
check: setup ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.PHONY: format
format: setup ## rewrite the sources in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: test-matrix
test-matrix: ## the tests that start no process of ours, under each Python 3.11+ found
	@.ci/matrix

.PHONY: bench
bench: setup ## this gateway, a bare aiohttp proxy and what peers are here, as ratios: docs/performance.md
	@.ci/bench
	@$(BIN)/python -m benchmarks.run $(ARGS)

.PHONY: bench-scaling
bench-scaling: setup ## what a request costs as rules, identities, routes, entries and buckets get many: about five minutes
	@.ci/bench
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

.PHONY: flame
flame: setup ## where the CPU time of a hit and of a miss goes: docs/flame-hit.svg, docs/flame-miss.svg
	@.ci/bench
	@$(BIN)/python -m benchmarks.flame --write $(ARGS)

.PHONY: bench-cache
bench-cache: setup ## what the cache saves when bots poll, and its policy beside plain LRU: about four minutes
	@$(BIN)/python -m benchmarks.cache $(ARGS)

.PHONY: bench-levels
bench-levels: setup ## several gateways on one Redis: copies in memory, one question for all; needs redis-server
	@$(BIN)/python -m benchmarks.cache_levels

.PHONY: bench-conformance
bench-conformance: setup ## the RFC 9111 suite put to nginx and Varnish, where they are installed: about three minutes
	@$(BIN)/python -m benchmarks.conformance

.PHONY: bench-fairness
bench-fairness: setup ## one abuser beside fifty polite callers, GitLab well and slowed to a tenth: about two minutes
	@$(BIN)/python -m benchmarks.fairness $(ARGS)

.PHONY: fuzz
fuzz: setup ## hypothesis and atheris over every parser of hostile octets; ARGS="SECONDS [TARGET ...]", 60 each by default
	@[ -d .fuzz/atheris ] || $(BIN)/python -m pip --disable-pip-version-check install -q --require-hashes --only-binary :all: \
		--no-deps --target .fuzz -r tests/fuzz/requirements.txt || echo "fuzz: no atheris for this system: hypothesis alone" >&2
	@PYTHONPATH=.fuzz $(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: roam
roam: setup ## the tests of properties with new examples, a thousand where a test names no number; `make test` draws the same each time
	@$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile=roaming -m hypothesis $(ARGS)

.PHONY: soak
soak: setup ## mixed traffic with random faults, on loopback: ARGS="SECONDS", 60 by default; then ten thousand idle clients
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: clients
clients: setup ## glab, ruby-gitlab, semantic-release, Renovate, and clients of registries (skopeo, containerd, npm …); Debian only
	@.ci/clients
	@$(BIN)/python -m pytest tests/e2e/check_clients.py tests/e2e/check_bots.py tests/e2e/check_registries.py $(ARGS)

.PHONY: lock
lock: ## pin newest versions again (needs uv on PATH, or UV=/path/to/uv)
	@.ci/lock

.PHONY: setup
setup:
	@.ci/setup test

.PHONY: clean
clean: ## forget what set-up installed
	rm -rf .venv .matrix .bench .fuzz .clients tests/e2e/node_modules tests/conformance/node_modules build dist *.egg-info
