# Everything starts here: `make run`, `make test` and `make lint` work on a machine that has only make and Python >= 3.11.
# The first call makes the environment in .venv; later calls reuse it until one of the files that describe it changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.streamlearn-set-up

# uv resolves, never pip: what pip makes of extras with underscores depends on its version, so the set would differ by machine.
export UV_HTTP_TIMEOUT ?= 300
# Compiled once here: where Python may not write its caches, each process that a test starts would compile torch anew, for 5 seconds.
export UV_COMPILE_BYTECODE ?= 1
EXTRAS := avalanche huggingface river tables tune vision
comma := ,
space := $(subst ,, )

# The environment is made anew when its interpreter is gone, or when PYTHON is given and is another version.
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
have := $(call version,$(BIN)/python)
want := $(if $(filter file,$(origin PYTHON)),$(have),$(call version,$(PYTHON)))
ifeq ($(and $(have),$(filter $(have),$(want))),)
renew := renew
endif

.PHONY: help setup run test lint format docs bench constraints clean renew
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

help:  ## say what can be made
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo 'Variables: PYTHON (the interpreter, now $(PYTHON)), VENV (now $(VENV)), ARGS (passed to run, test and bench).'

setup: $(STAMP)  ## make the environment, with every dependency pinned by constraints.txt

run: $(STAMP)  ## run the demonstration
	$(BIN)/streamlearn run $(ARGS)

test: $(STAMP)  ## run the tests and the examples in the docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=2 $(ARGS)

lint: $(STAMP)  ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write what is generated: tables of benchmarks and pairs, pages on streams, hooks and plugins
	$(BIN)/python docs/streams/make.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_metrics.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python -m tests.conformance.pairs

bench: $(STAMP)  ## measure the cost of the engine
	$(BIN)/python benchmarks/engine.py $(ARGS)

constraints: $(BIN)/uv  ## write constraints.txt anew, keeping pins that still fit (all newest: make constraints ARGS=--upgrade)
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --quiet --custom-compile-command 'make constraints' \
	  $(EXTRAS:%=--extra %) --group dev --overrides overrides.txt --output-file constraints.txt $(ARGS)

clean:  ## remove caches and what was built; the environment stays (rm -r .venv removes it)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --exact removes what no longer belongs, so that two machines never differ by what was installed before.
$(STAMP): pyproject.toml constraints.txt overrides.txt Makefile $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --exact --constraints constraints.txt --build-constraints constraints.txt \
	  --overrides overrides.txt --group dev --editable '.[$(subst $(space),$(comma),$(EXTRAS))]'
	@touch $@

$(BIN)/uv: $(renew)
	@command -v '$(PYTHON)' >/dev/null || { echo 'error: $(PYTHON) not found; name a Python >= 3.11: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: streamlearn needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) lacks venv; install it (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
