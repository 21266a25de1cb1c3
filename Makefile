# make train: set up and train. make test: everything a change must pass.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXPERIMENT ?= top5
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: train test test-slow lint types wheel clean

train: $(VENV)/.runs
	$(BIN)/python -m robust_fin.train +experiment=$(EXPERIMENT) $(ARGS)

test: lint types
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(VENV)/.tests
	$(BIN)/python -m pytest -q -n 2 -m "slow"

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests
	$(BIN)/mypy

wheel: $(VENV)/.tests
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) outputs multirun dist .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e ".[report]"
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@
