# Two commands for everybody: `make demo` and `make test`. Both need Python 3.11 or newer and make, nothing else:
# each makes its own virtual environment and installs the versions of constraints.txt into it.

PYTHON ?= python3
WORKERS ?= 2

# What `make demo` runs (a synthesised workload: no trace file is needed). DEMO_JSON takes the result.
DEMO_JSON ?= demo.json
DEMO ?= compare --workload mooncake --rate-scale 1 --topology disaggregated \
	--policy fcfs --policy cost_aligned --policy density_first --surface gated --seed 0 --json $(DEMO_JSON)

DEMO_VENV := .venv-demo
TEST_VENV := .venv
SOURCES := $(shell find src -name '*.py') pyproject.toml constraints.txt LICENSE README.md

# The build tools are held to constraints.txt too; newer pips read the second name for that, older ones the first.
PIP_ENV := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# Neither command sees modules from elsewhere.
unexport PYTHONPATH PYTHONHOME

.PHONY: demo test lint types contracts tests clean python

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/alignedsched $(DEMO)

test: lint types contracts tests

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check
	$(TEST_VENV)/bin/ruff format --check

types: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/mypy

contracts: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/lint-imports

tests: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/pytest -n $(WORKERS)

# The base install as a user gets it: a built wheel and its three dependencies, made anew when a source changed.
$(DEMO_VENV)/.installed: $(SOURCES) | python
	rm -rf $(DEMO_VENV)
	$(PYTHON) -m venv $(DEMO_VENV)
	echo '*' > $(DEMO_VENV)/.gitignore
	$(PIP_ENV) $(DEMO_VENV)/bin/python -m pip install --quiet .
	touch $@

# The working copy itself, with what the checks need.
$(TEST_VENV)/.installed: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(TEST_VENV)
	$(PIP_ENV) $(TEST_VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignedsched needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11 ...")'

clean:
	rm -rf $(DEMO_VENV) $(TEST_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
