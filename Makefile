# Everything that a contributor types; `make` alone lists it.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed

# Where it is set, as in many containers, each of some thirty processes compiles all that it imports, torch included: 12
# seconds a process.
unexport PYTHONDONTWRITEBYTECODE

# Most tests are many operations on small tensors: their time is Python's, which a second thread does not
# shorten and a second process nearly halves. So: worker processes with one torch thread each. What the tests of a file
# share is made once; files are taken in the order of `tests/conftest.py`.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=30

.PHONY: help install demo test check coverage lint types oldest latest bench bench-tag docs dist

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(INSTALLED) ## create .venv with the pinned set; instant when nothing changed

# Python compiles what it imports; to compile all else that is installed would take most of a minute.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing the pinned set into .venv (minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test,dev,docs]'
	@touch $@

demo: install ## the main job on the embedded digits: relaxed against exact training, with a report
	$(BIN)/pyro-gvae compare --workers $(WORKERS)

test: install ## all tests: the slow ones, the documented examples and the pages' build included
	$(PYTEST)

check: lint types ## lint, format, types and the fast tests
	$(PYTEST) -m "not slow"

coverage: install ## which lines the fast tests reach, as a table and in build/coverage
	$(PYTEST) -m "not slow" --cov=pyro_gvae --cov-report=term:skip-covered --cov-report=html:build/coverage

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

oldest: ## the fast tests with the lowest versions that pyproject.toml allows, in an environment of their own
	$(call fast_tests_with,lowest-direct)

latest: ## the fast tests with the newest versions that there are, in an environment of their own
	$(call fast_tests_with,highest)

# pip cannot choose the lowest versions; uv can.
define fast_tests_with
	$(PYTHON) -m venv --clear build/$@
	build/$@/bin/pip install --quiet --disable-pip-version-check uv
	build/$@/bin/uv pip install --quiet --python build/$@/bin/python --resolution $(1) -e '.[test]'
	OMP_NUM_THREADS=1 build/$@/bin/pytest -q -n $(WORKERS) --dist worksteal -m "not slow"
endef

bench: install ## how fast, side by side in one run; the JAX row needs the extra `bench`
	$(BIN)/python experiments/speed.py exact
	$(BIN)/python experiments/speed.py step
	$(BIN)/python experiments/speed.py programs

bench-tag: install ## steps over those of the last tag, or of REF=COMMIT, as ratios
	$(BIN)/python experiments/bench_tag.py $(REF)

docs: install ## the documents, into build/docs; their code is run, warnings are errors, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -j $(WORKERS) docs build/docs
	@echo "Open build/docs/index.html"

dist: install ## wheel and sdist, into dist; with TAG=v1.2.3 only if that is the version
	@test -z "$(TAG)" || $(BIN)/python -c 'from pyro_gvae import __version__; assert "$(TAG)" == f"v{__version__}", __version__'
	$(BIN)/python -m build
