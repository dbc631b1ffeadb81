# make setup, make demo, make test: see `make help`.

# The first that runs: a version manager may leave a python3.11 on the path that does not.
PYTHON      ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
TORCH       ?= $(shell grep '^torch==' requirements.lock)
TORCH_INDEX ?=
ARGS        ?=

BIN   := .venv/bin
READY := .venv/.ready
# Idle OpenMP threads sleep, after some microseconds: see src/loopwise/threads.py.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 20000
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-all test-gpu bench lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make setup     make .venv with everything pinned in requirements.lock'
	@echo '               another PyTorch build: make setup TORCH=torch==2.14.0 TORCH_INDEX=https://...'
	@echo '               another Python:        make setup PYTHON=python3.12'
	@echo 'make demo      a tiny model teaches itself in front of you, about two minutes (ARGS="--seed 1")'
	@echo 'make test      the test suite, 8 minutes at most on two cores'
	@echo 'make test-all  the long tests too'
	@echo 'make test-gpu  the tests that need a GPU (a few minutes; skipped, with the reason, where torch sees none)'
	@echo 'make bench     loopwise beside its rivals, several hours in full (ARGS="--only pretrain --json out.json --quick")'
	@echo 'make lint      style, types and floors'
	@echo 'make clean     remove caches and build leftovers (.venv stays)'

setup: $(READY)
	@echo 'setup: .venv is ready. To change its Python or PyTorch, remove .venv and run `make setup` again.'

# The stamp goes first and comes back last, so a setup that was cut short never counts as ready.
$(READY): requirements.lock pyproject.toml
	@rm -f $@
	@test -n '$(PYTHON)' || { echo 'setup: no Python found. Name one: make setup PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo 'setup: making .venv ...'
	@$(PYTHON) -m venv .venv
	@echo 'setup: installing $(TORCH) ...'
	@$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'
	@echo 'setup: installing the rest of requirements.lock ...'
	@grep -v '^torch==' requirements.lock > .venv/rest.lock
	@$(BIN)/pip install --quiet -r .venv/rest.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/pip check > .venv/check.log || { cat .venv/check.log; \
	  echo 'setup: these packages do not fit together. Remove .venv and run `make setup` again.'; exit 1; }
	@touch $@

demo: $(READY)
	@$(BIN)/loopwise demo $(ARGS)

# One thread a worker: two workers with two threads each would fight over two cores.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-all: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not gpu' --timeout 3600

test-gpu: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m gpu -rs --timeout 600

# Alone on the machine, or the figures mean little.
bench: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

define CHECK_PYTHON
import sys
found = '%d.%d' % sys.version_info[:2]
if sys.version_info < (3, 11):
    sys.exit('setup: Python 3.11 is needed, found ' + found + '. Name one: make setup PYTHON=/path/to/python3.11')
if sys.version_info >= (3, 12):
    print('setup: note: Python ' + found + ' is untested, 3.11 is the tested one.')
endef
export CHECK_PYTHON
