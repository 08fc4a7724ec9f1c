# The two commands: `make demo` and `make test`. Everything else is beside them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON313 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) python3.13)
export OMP_NUM_THREADS ?= 1
# Tests run in two processes of one thread each; raise on a larger machine.
WORKERS ?= 2
FUZZ ?= 1000

.PHONY: demo test test-extras test-notebooks test-fast fuzz test-py313 lint types bench docs format clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyrobnn needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.package  ## train on real digits, write demo-output/
	$(BIN)/pyrobnn demo --output demo-output

test: lint types  ## everything CI runs
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not notebook'

test-extras: $(VENV)/.test  ## what needs large optional packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lora]'
	$(BIN)/python -m pytest -q -n $(WORKERS) tests/lora tests/test_docs.py

test-notebooks: $(VENV)/.test  ## every tutorial in smoke mode
	$(BIN)/python -m pytest -q -n $(WORKERS) -m notebook

test-fast: $(VENV)/.test  ## without the heavy statistical tests
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not statistical and not notebook'

fuzz: $(VENV)/.test  ## many random configurations and inputs; FUZZ is their number for each test
	PYROBNN_FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -n $(WORKERS) tests/robust_use/test_random_configurations.py

test-py313:  ## the ArviZ bridge on Python 3.13, where ArviZ is 1.x
	test -d .venv313 || $(PYTHON313) -m venv .venv313
	.venv313/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	.venv313/bin/python -m pytest -q -m arviz

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.test  ## speed, side by side with peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.prediction
	$(BIN)/python -m benchmarks.laplace

docs: $(VENV)/.package  ## the documentation as pages under site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv313 demo-output site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
