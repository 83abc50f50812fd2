# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
#
# Needs make and Python 3.11 or newer; everything else is installed into .venv by the targets that need it.

PYTHON ?= python3
# Variables for the command line, not taken from the environment:
DATA = digits
# More arguments for pip, such as the index of another build of torch.
PIP_ARGS =
PYTEST_ARGS =

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV)/.installed-bench

VENV_ARVIZ1 := .venv-arviz1
PY_ARVIZ1 := $(VENV_ARVIZ1)/bin/python
# ArviZ 1.x needs Python 3.12. Interpreters of pyenv that are not on the PATH are looked for too.
PYTHONS_ARVIZ1 = python3.12 python3.13 python3 \
    $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3 $(HOME)/.pyenv/versions/3.13*/bin/python3)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-arviz1 lint typecheck format docs doctest bench bench-quick clean distclean

help: ## show this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Nothing is installed again until one of the two files changes.
$(INSTALLED): pyproject.toml constraints-dev.txt
	@sh scripts/find_python.sh 3.11 ./$(PY) >/dev/null || { \
	    python=$$(sh scripts/find_python.sh 3.11 "$(PYTHON)" python3.11 python3.12 python3.13) || { \
	        echo "pyro_ebm needs Python 3.11 or newer, and '$(PYTHON)' is" \
	            "$$("$(PYTHON)" --version 2>&1 | head -n 1)." >&2; \
	        echo "No python3.11, python3.12 or python3.13 was found either." \
	            "Install one, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	        exit 1; }; \
	    echo "creating $(VENV) with $$python ($$("$$python" --version))"; \
	    "$$python" -m venv --clear $(VENV); }
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet $(PIP_ARGS) --constraint constraints-dev.txt --editable ".[all]" --group dev
	@touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	$(PY) -m pip install --quiet $(PIP_ARGS) --constraint constraints-dev.txt --group bench
	@touch $@

install: $(INSTALLED) ## create .venv with the package, its extras and the development tools

demo: $(INSTALLED) ## train, evaluate and sample a small RBM: make demo [DATA=mnist]
	$(BIN)/pyro-ebm demo --data $(DATA) --output runs/demo

# Two processes of one torch thread each are faster than one process of two threads.
test: $(INSTALLED) ## run the tests, without the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(INSTALLED) ## run the slow tests
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

test-arviz1: ## check the ArviZ 1.x side of the diagnostics, if a Python 3.12 is found
	@python=$$(sh scripts/find_python.sh 3.12 $(PYTHONS_ARVIZ1)) || { \
	    echo "SKIPPED test-arviz1: ArviZ 1.x needs Python 3.12 or newer, and none was found"; exit 0; }; \
	set -e; \
	if ! test -e $(VENV_ARVIZ1)/.installed || ! test -x $(PY_ARVIZ1); then \
	    echo "creating $(VENV_ARVIZ1) with $$python ($$("$$python" --version))"; \
	    "$$python" -m venv --clear $(VENV_ARVIZ1); \
	    $(PY_ARVIZ1) -m pip install --quiet numpy "arviz>=1" h5netcdf h5py pytest; \
	    touch $(VENV_ARVIZ1)/.installed; \
	fi; \
	$(PY_ARVIZ1) -m pytest tests_arviz1

lint: $(INSTALLED) typecheck ## check style, headers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PY) scripts/check_headers.py

typecheck: $(INSTALLED) ## run mypy
	$(PY) -m mypy

format: $(INSTALLED) ## sort imports, format, add missing headers
	$(PY) scripts/check_headers.py --fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## build the documentation into docs/build/html; warnings are errors
	$(PY) -m sphinx -W --keep-going -q -b html docs/source docs/build/html

doctest: $(INSTALLED) ## run the examples of the documentation and of the docstrings
	PYRO_EBM_TUTORIALS=off OMP_NUM_THREADS=1 $(PY) -m sphinx -W --keep-going -q -b doctest docs/source docs/build/doctest
	OMP_NUM_THREADS=1 $(PY) -m pytest --doctest-modules pyro_ebm

bench: $(INSTALLED_BENCH) ## run the benchmarks, against other packages too
	$(PY) -m benchmarks.run

bench-quick: $(INSTALLED) ## run a short version of the benchmarks
	$(PY) -m benchmarks.run --quick

clean: ## remove what building, testing and linting leave behind
	rm -rf build dist *.egg-info docs/build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environments too
	rm -rf $(VENV) $(VENV_ARVIZ1)
