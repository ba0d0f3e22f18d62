# Everything that a contributor types; `make` alone lists it.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed

# Most tests are many operations on small tensors: their time is Python's, which a second thread does not
# shorten and a second process nearly halves. So: worker processes with one torch thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist worksteal --durations=30

.PHONY: help install demo test check coverage lint types bench docs

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(INSTALLED) ## create .venv with the pinned set; instant when nothing changed

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing the pinned set into .venv (minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,docs]'
	@touch $@

demo: install ## the main job on the embedded digits: relaxed against exact training, with a report
	$(BIN)/pyro-gvae compare

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

bench: install ## how fast, side by side in one run; the JAX row needs the extra `bench`
	$(BIN)/python experiments/speed.py exact
	$(BIN)/python experiments/speed.py step

docs: install ## the documents, into build/docs; their code is run, warnings are errors, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -j $(WORKERS) docs build/docs
	@echo "Open build/docs/index.html"
