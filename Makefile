# Everything runs in an environment of its own, which the first target that needs it makes.
PYTHON ?= python3
VENV ?= .venv
# Further environments, each for a test of its own.
OLDEST ?= .venv-oldest
LIGHTNING ?= .venv-lightning
CONFIG ?= configs/pilco_cartpole.yaml
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
MUTANTS ?=
TAG ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
PACKAGES := lightning_proppo envs agents
CODE := $(wildcard $(PACKAGES) benchmarks docs/diagrams docs/rendering examples tests)
DOCS_STAMP := $(VENV)/.installed-docs
# A build is of its commit, and the same whenever and wherever it is made.
EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),0)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-lightning mutants lint format docs dist clean

help: ## Say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(STAMP) ## Make the environment, with the tested versions of everything (CONSTRAINTS= takes the newest)

# The stamp is written last: an installation that was interrupted is taken up again.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train the default agent (CONFIG=configs/OTHER.yaml trains another)
	$(BIN)/lightning-proppo fit --config $(CONFIG)

test: $(STAMP) ## Run the tests (PYTEST_ARGS='-k name' runs some)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-oldest: $(OLDEST)/.installed ## Run the tests with the oldest versions of everything
	$(OLDEST)/bin/python -m pytest $(PYTEST_ARGS)

# Where pip finds no CPU build of PyTorch, about 6 GB.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-oldest.txt --editable '.[test]'
	@touch $@

test-lightning: $(LIGHTNING)/.installed ## Run the tests with lightning in the place of pytorch-lightning
	$(LIGHTNING)/bin/python -m pytest $(PYTEST_ARGS)

# Requirements cannot say "one of the two".
$(LIGHTNING)/.installed: pyproject.toml constraints.txt
	test -x $(LIGHTNING)/bin/python || $(PYTHON) -m venv $(LIGHTNING)
	$(LIGHTNING)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]'
	$(LIGHTNING)/bin/python -m pip uninstall --quiet --yes pytorch-lightning
	@touch $@

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
	$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

# setuptools has the time of the build in its archive of the sources; tar packs them anew.
dist: $(STAMP) ## Build wheel and sources into dist/ and check them (TAG=v1.2.3 must be their version)
	$(PIP_INSTALL) --editable '.[release]'
	rm -rf build dist
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m build --no-isolation --outdir dist
	cd dist && tar xzf *.tar.gz && rm *.tar.gz && name=$$(ls -d */ | tr -d /) && \
		tar --sort=name --mtime=@$(EPOCH) --owner=0 --group=0 --numeric-owner \
			--mode=u=rwX,go=rX --format=gnu -cf - $$name | gzip -9n > $$name.tar.gz && rm -r $$name
	$(BIN)/twine check --strict dist/*
	$(if $(TAG),test -f dist/lightning_proppo-$(TAG:v%=%).tar.gz)

clean: ## Remove the environment, caches and what was built; runs/ stays
	rm -rf $(VENV) $(OLDEST) $(LIGHTNING) build dist site
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
