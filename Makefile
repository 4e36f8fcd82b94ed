# make train        train an agent (ALGO, ENV, SEED, ARGS), then: make enjoy
# make tune         search hyperparameters (ALGO, ENV, TRIALS, ARGS)
# make test         run the tests;  also: lint, type, format, build, clean
# make docs         the site, into build/docs; warnings are errors, no internet
# make bench-speed  time updates beside the stock algorithms, a few minutes
# make constraints  pin the newest versions that work together

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

ALGO ?= adaptive_trpo
ENV ?= CartPole-v1
SEED ?= 0
LOGS ?= logs
ARGS ?=
TRIALS ?= 50

# Other versions than those that are pinned: make test VENV=.venv-lowest CONSTRAINTS=.github/lowest.txt
CONSTRAINTS ?= constraints.txt
TORCH := $(or $(shell grep '^torch==' $(CONSTRAINTS)),torch)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

# More threads than that make small networks slower, and results depend on the number.
export OMP_NUM_THREADS ?= 1

.PHONY: train enjoy tune test lint type format docs build bench-speed constraints clean

train: $(VENV)/.installed-envs
	$(BIN)/python -m rl_zoo3.train --algo $(ALGO) --env $(ENV) --log-folder $(LOGS) --seed $(SEED) --progress $(ARGS)

enjoy: $(VENV)/.installed-envs
	$(BIN)/python -m rl_zoo3.enjoy --algo $(ALGO) --env $(ENV) --folder $(LOGS) --no-render --n-timesteps 5000 $(ARGS)

# Again with the same ALGO and ENV it goes on; several may run at once.
tune: $(VENV)/.installed-envs
	$(BIN)/python -m rl_zoo3.train --algo $(ALGO) --env $(ENV) -optimize --n-trials $(TRIALS) --no-optim-plots \
		--log-folder $(LOGS) --study-name $(ALGO)-$(ENV) --storage $(LOGS)/tuning/$(ALGO)-$(ENV).log $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-fail-under 95 $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo build/docs/index.html

# The wheel is built from the sdist, which must hold all that it needs.
build: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

bench-speed: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.speed $(ARGS)

# A fresh environment with everything, frozen: no local version tags, no installers.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet $(TORCH)
	.venv-constraints/bin/python -m pip install --quiet ".[envs,bench,docs,dev]"
	{ head -n 1 constraints.txt; .venv-constraints/bin/python -m pip freeze \
		| grep --invert-match --ignore-case '^sb3.trustregion' | sed 's/+[a-z0-9.]*$$//' | sort --ignore-case; \
	} > .venv-constraints/constraints.txt
	mv .venv-constraints/constraints.txt constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf $(VENV) .venv-constraints build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov

# torch comes first and alone, so that nothing else decides which build of it is taken.
$(VENV)/.installed-torch: $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

$(VENV)/.installed-envs: $(VENV)/.installed-torch pyproject.toml startup/sb3_trustregion.pth
	$(INSTALL) --editable ".[envs]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-torch pyproject.toml startup/sb3_trustregion.pth
	$(INSTALL) --editable ".[envs,bench,dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-torch pyproject.toml startup/sb3_trustregion.pth
	$(INSTALL) --editable ".[docs]"
	touch $@
