# Everything runs in an environment of its own, which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/pilco_cartpole.yaml
PYTEST_ARGS ?=
MUTANTS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := lightning_proppo envs agents
CODE := $(wildcard $(PACKAGES) benchmarks docs/diagrams docs/rendering examples tests)
DOCS_STAMP := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help install demo test mutants lint format docs clean

help: ## Say what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## Make the environment, with the tested versions of everything

# The stamp is written last: an installation that was interrupted is taken up again.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train the default agent (CONFIG=configs/OTHER.yaml trains another)
	$(BIN)/lightning-proppo fit --config $(CONFIG)

test: $(STAMP) ## Run the tests (PYTEST_ARGS='-k name' runs some)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

mutants: $(STAMP) ## Show that the tests catch errors in the mathematics (MUTANTS='--only tp.py' tries some)
	$(BIN)/python -m benchmarks.mutants $(MUTANTS)

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the house style
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: $(DOCS_STAMP) ## Build the documentation as a site, in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	@touch $@

clean: ## Remove the environment, caches and what was built; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
