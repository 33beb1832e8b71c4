# Two commands set everything up: `make quickstart` trains a small model and draws what its memory bought,
# `make test` runs the test suite, `make lint` the checks beside it. Each creates .venv when it is not there and reuses it
# after.
#   make quickstart RUN_DIR=runs/other PYTHON=python3.12 ARGS="--gin_bindings='SEED = 1'"

PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/quickstart
ARGS ?=
QUIETLY = --quiet --quiet --progress-bar off --disable-pip-version-check

.PHONY: quickstart test lint
.DEFAULT_GOAL := quickstart

# Large pages make the step's big buffers cheaper to allocate on a CPU.
quickstart: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: $(VENV)/installed
	$(VENV)/bin/python -m hiermem_jax.run --gin_file=gin/runs/quickstart.gin --run_dir=$(RUN_DIR) $(ARGS)

test: $(VENV)/installed-tests
	$(VENV)/bin/python -m pytest --numprocesses=2 $(ARGS)

# Style, types, and no eight lines that stand in two modules.
lint: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pylint hiermem_jax tpu_setup

$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(QUIETLY) -r requirements.txt -e .
	touch $@

$(VENV)/installed-tests: $(VENV)/installed tests/requirements.txt
	$(VENV)/bin/python -m pip install $(QUIETLY) -r requirements.txt -r tests/requirements.txt
	touch $@
