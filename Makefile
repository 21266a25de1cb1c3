# make train: set up and train. make test: what every change must pass. make test-processes, make docs
# and make notebooks: the rest of what continuous integration runs. make test-slow: the long counts, part
# after part; make test-slow PART=training: one of them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXPERIMENT ?= top5
ARGS ?=
PART ?= $(PARTS)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
QUICK := not slow and not processes and not docs
unexport PYTHONDONTWRITEBYTECODE # collection takes half the time where the bytecode is kept

# the parts of make test-slow: paths below tests/. Every slow test is in one of them.
PARTS := data market training resumes kills ranks sweeps commands damage docs
SLOW_data := data evaluation features leaks laws ranking runtime test_doctor.py
SLOW_market := market
SLOW_training := training
SLOW_resumes := commands/test_resume.py commands/test_population.py
SLOW_kills := commands/test_kill.py commands/test_sweep_kill.py
SLOW_ranks := commands/test_ddp.py commands/test_sweep_ddp.py commands/test_nonfinite.py \
	commands/test_population_processes.py
SLOW_sweeps := sweeps commands/test_optuna.py commands/test_population_sweep.py commands/test_trials.py
SLOW_commands := commands/test_bad_input.py commands/test_debug.py commands/test_leakcheck.py \
	commands/test_no_future_in_scores.py \
	commands/test_planted_signal.py commands/test_select.py commands/test_tensorboard.py
SLOW_damage := commands/test_untrusted_runs.py
SLOW_docs := docs

.PHONY: train test test-processes test-slow lint types docs notebooks wheel clean

train: $(VENV)/.runs
	$(BIN)/python -m robust_fin.train +experiment=$(EXPERIMENT) $(ARGS)

# the types are checked beside the tests: mypy leaves one of two cores idle
test: lint
	@$(BIN)/mypy & types=$$!; $(PYTEST) -m "$(QUICK)"; tests=$$?; wait $$types && exit $$tests

test-processes: $(VENV)/.tests
	$(PYTEST) -m "processes and not slow"

test-slow: $(VENV)/.tests
	@failed=""; for part in $(PART); do \
		$(MAKE) --no-print-directory slow-$$part || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

slow-%:
	$(if $(SLOW_$*),,$(error PART=$* is none of: $(PARTS)))
	@start=$$(date +%s); $(PYTEST) -m slow $(addprefix tests/,$(SLOW_$*)); code=$$?; \
	echo "make test-slow PART=$*: $$(($$(date +%s) - start)) seconds"; exit $$code

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(PYTEST) -m "docs and not slow"
	ROBUST_FIN_SITE=site $(BIN)/python -m pytest -q -m slow tests/docs/test_site.py

notebooks: $(VENV)/.notebooks
	$(PYTEST) -m slow tests/docs/test_notebooks.py

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
