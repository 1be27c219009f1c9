# `make` lists the targets. Each makes first what it needs; stamps in .make/ say what is made.

PYTHON ?= python3
NODE   ?= node
NPM    ?= npm
# Processes that run tests; each waits for its databases a third of the time, and takes 1.5 GB.
JOBS   ?= 3

VENV   := .venv
BIN    := $(VENV)/bin
WASM   := tests/timescale_wasm
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate pyproject.toml --extra polars --group build

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: .make/run ## Install Kurisu into .venv (then: .venv/bin/kurisu --help)

.PHONY: demo
demo: .make/run ## A day of real candles, from the file to the chart
	@$(BIN)/kurisu demo

.PHONY: test
test: lint .make/node ## Everything that CI runs: lint, types, layers, tests
	@$(BIN)/python -m pytest -n $(JOBS)

.PHONY: lint
lint: .make/dev ## ruff, mypy --strict, the layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: .make/dev ## Format the code, and mend what ruff can
	@$(BIN)/ruff check --fix --exit-zero
	@$(BIN)/ruff format

.PHONY: bench
bench: .make/dev ## Measure writes, reads and sizes
	@$(BIN)/python -m bench

.PHONY: docs
docs: .make/dev ## Write the generated pages of docs/ anew
	@for script in scripts/make_*_docs.py; do $(BIN)/python "$$script"; done

.PHONY: lock
lock: .make/dev ## Compile requirements/ anew from pyproject.toml (UPGRADE=1: newest versions)
	@$(COMPILE) $(if $(UPGRADE),--upgrade) -o requirements/run.txt
	@$(COMPILE) $(if $(UPGRADE),--upgrade) --group test --group bench --group lock \
		--constraints requirements/run.txt -o requirements/dev.txt

.PHONY: clean
clean: ## Remove what these targets have made, .venv included; no data of yours
	rm -rf $(VENV) .make build dist $(WASM)/node_modules .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. pyvenv.cfg is as old as the environment: a new one makes the stamps old.

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Kurisu needs Python 3.11 or newer, and there is no '$(PYTHON)'." \
		"Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Kurisu needs Python 3.11 or newer; $(PYTHON) is" \
		"$$($(PYTHON) -V 2>&1). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "The virtual environment could not be made (on Debian: apt install python3-venv)." \
		>&2; exit 1; }

.make/run: requirements/run.txt pyproject.toml $(VENV)/pyvenv.cfg
	@mkdir -p .make
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/run.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.make/dev: requirements/dev.txt .make/run
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

.make/node: $(WASM)/package-lock.json $(WASM)/package.json
	@mkdir -p .make
	@$(NODE) -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || { \
		echo "The tests run TimescaleDB in WebAssembly and need Node 20 or newer;" \
		"'$(NODE)' is $$($(NODE) --version 2>/dev/null || echo 'not there')." >&2; exit 1; }
	@cd $(WASM) && $(NPM) ci --silent --no-audit --no-fund
	@touch $@
