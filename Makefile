# make train: set up and train. make test: what every change must pass. make test-processes, make docs
# and make notebooks: the rest of what continuous integration runs. make test-slow: the long counts.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXPERIMENT ?= top5
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: train test test-processes test-slow lint types docs notebooks wheel clean

train: $(VENV)/.runs
	$(BIN)/python -m robust_fin.train +experiment=$(EXPERIMENT) $(ARGS)

test: lint types
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not processes and not docs"

test-processes: $(VENV)/.tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "processes and not slow"

test-slow: $(VENV)/.tests
	$(BIN)/python -m pytest -q -n 2 -m "slow"

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "docs and not slow"
	ROBUST_FIN_SITE=site $(BIN)/python -m pytest -q -m slow tests/docs/test_site.py

notebooks: $(VENV)/.notebooks
	$(BIN)/python -m pytest -q -n 2 -m slow tests/docs/test_notebooks.py

wheel: $(VENV)/.tests
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) outputs multirun site dist .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e ".[report]"
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.tests
	$(PIP) install -q -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/.notebooks: $(VENV)/.tests
	$(PIP) install -q -c constraints.txt -e ".[notebooks]"
	touch $@
