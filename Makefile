# Everything starts from a bare clone: Python >= 3.11 and make are all it assumes.
# Arguments pass through: make serve ARGS="--port 8001 --variants onnx-int8"

PYTHON ?= python3
ARGS ?=
ARTIFACTS ?= artifacts
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: serve test check fmt convert load report bench compiled clean help

serve: .venv/serve.done ## convert on first use, then serve on http://127.0.0.1:8000
	@$(BIN)/python -m converters build --missing --out $(ARTIFACTS)
	@exec $(BIN)/python -m serve_app --artifacts $(ARTIFACTS) $(ARGS)

test: check ## everything that CI checks
	$(BIN)/python -m pytest --durations=8 $(ARGS)

check: .venv/dev.done ## linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: .venv/dev.done ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

convert: .venv/serve.done ## build all variants anew and print their table
	$(BIN)/python -m converters build --out $(ARTIFACTS) $(ARGS)

load: .venv/dev.done ## load the running server, or one of its own, and write load/…/index.html
	@$(BIN)/python -m loadtests run --serve $(ARTIFACTS) $(ARGS)

report: .venv/serve.done ## measure all variants side by side and write report/index.html
	$(BIN)/python -m converters report --out $(ARTIFACTS) $(ARGS)

bench: .venv/dev.done ## measure what a text costs, beside the bare engine: loadtests/results/DATE-MACHINE/bench
	@$(BIN)/python -m loadtests bench --artifacts $(ARTIFACTS) $(ARGS)

compiled: .venv/dev.done ## have the routing brain compiled to C, a quarter of the time a decision (once more after each change)
	$(BIN)/python -m serve_app compile

clean: ## remove the environment and the artifacts
	rm -rf .venv $(ARTIFACTS) .pytest_cache .mypy_cache .ruff_cache serve_app/policy/*.so serve_app/policy/compiled.sha256

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; say which to use: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/serve.done: .venv/made pyproject.toml constraints.txt
	@echo "installing pinned packages into .venv (a minute or two)"
	@$(PIP) --editable '.[cpu,convert]'
	@touch $@

.venv/dev.done: .venv/serve.done
	@$(PIP) --editable '.[cpu,convert,load,dev]'
	@touch $@
