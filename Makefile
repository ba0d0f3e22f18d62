# The commands for contributors; `make` alone lists them.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed

# Many containers set this variable. Then each of some thirty processes would compile everything that it imports,
# including torch, which takes 12 seconds per process.
unexport PYTHONDONTWRITEBYTECODE

# Most tests run many operations on small tensors, and spend their time in Python: a second thread does not help, and a
# second process nearly halves the time. So there are worker processes with one torch thread each. All tests of a file
# run in one worker, which makes shared fixtures once; `tests/conftest.py` sets the order of the files.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=30

.PHONY: help install demo test check coverage lint types oldest latest bench bench-tag docs dist

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(INSTALLED) ## create .venv with the pinned versions; instant if nothing has changed

# Python compiles modules when it imports them; compiling all installed modules here would take most of a minute.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing the pinned versions into .venv (takes minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test,dev,docs]'
	@touch $@

demo: install ## compare relaxed and exact training on the embedded digits, with a report
	$(BIN)/pyro-gvae compare --workers $(WORKERS)

test: install ## all tests, including slow ones, documented examples and the build of the pages
	$(PYTEST)

check: lint types ## lint, format, types and the fast tests
	$(PYTEST) -m "not slow"

coverage: install ## coverage of the fast tests, as a table and in build/coverage
	$(PYTEST) -m "not slow" --cov=pyro_gvae --cov-report=term:skip-covered --cov-report=html:build/coverage

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

oldest: ## fast tests with the lowest versions that pyproject.toml allows, in a separate environment
	$(call fast_tests_with,lowest-direct)

latest: ## fast tests with the newest versions, in a separate environment
	$(call fast_tests_with,highest)

# pip cannot choose the lowest versions; uv can.
define fast_tests_with
	$(PYTHON) -m venv --clear build/$@
	build/$@/bin/pip install --quiet --disable-pip-version-check uv
	build/$@/bin/uv pip install --quiet --python build/$@/bin/python --resolution $(1) -e '.[test]'
	OMP_NUM_THREADS=1 build/$@/bin/pytest -q -n $(WORKERS) --dist worksteal -m "not slow"
endef

# Options for where a benchmark writes: without RECORD, a folder that git ignores.
numbers = $(if $(RECORD),,--results build/bench/speed_$(1).json)
figures = $(if $(RECORD),,--figures build/bench)

bench: install ## benchmarks, side by side in one run, into build/bench; RECORD=1 replaces the tracked numbers and figures
	$(BIN)/python experiments/speed.py exact $(call numbers,exact) $(figures)
	$(BIN)/python experiments/speed.py step $(call numbers,step) $(figures)
	$(BIN)/python experiments/speed.py programs $(call numbers,programs)

bench-tag: install ## speed of training steps relative to the last tag, or to REF=COMMIT
	$(BIN)/python experiments/bench_tag.py $(REF)

docs: install ## build the documents in build/docs: runs their code, warnings are errors, needs no network
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -j $(WORKERS) docs build/docs
	@echo "Open build/docs/index.html"

dist: install ## build wheel and sdist in dist; TAG=v1.2.3 checks that this is the version
	@test -z "$(TAG)" || $(BIN)/python -c 'from pyro_gvae import __version__; assert "$(TAG)" == f"v{__version__}", __version__'
	$(BIN)/python -m build
