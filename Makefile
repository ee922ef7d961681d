# Needs git, make and Python 3.11 or newer with venv. The rest sets itself up in .venv.
SHELL := /bin/bash

# The newest Python that runs: a pyenv shim may be there and refuse.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
SECONDS ?= 60
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help demo test quick reliability service first-hour bench detect fuzz lint format docs check migrations-check wheel-smoke clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## see it work: simulated files in, a kill -9 on the way, checked rows out
	$(BIN)/python tests/demo.py

test: $(READY)  ## every test, on SQLite and on a real PostgreSQL
	$(BIN)/pytest -n $(WORKERS) -m "not campaign"

quick: $(READY)  ## the tests without the slow ones
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not campaign"

reliability: $(READY)  ## every promise with its long campaigns (an hour or more); writes docs/reliability.md; RELIABILITY="--only tests/test_crash.py"
	$(BIN)/python -m tests.reliability --workers $(WORKERS) $(RELIABILITY)

service: $(READY)  ## the service on a machine of its own (root, debootstrap, systemd-nspawn); writes docs/service.md
	$(BIN)/python -m tests.service

first-hour: $(READY)  ## a new user's first hour on such a machine; writes docs/first-hour.md
	$(BIN)/python -m tests.first_hour

bench: $(READY)  ## measure, about 30 minutes; writes docs/performance.md; BENCH="--only pg-1gb", --full
	$(BIN)/python -m bench $(BENCH)

fuzz: $(READY)  ## look for input that breaks a claim, SECONDS=60 for each target; needs Python 3.11
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	for target in names rows zips; do \
		$(BIN)/python -m tests.fuzz.run $$target $(SECONDS) || exit 1; done

detect: $(READY)  ## how well the statistical rules work (some minutes); writes docs/detection.md
	$(BIN)/python -m bench.detect

lint: $(READY)  ## ruff, mypy, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)  ## write anew what programs know: config.example.toml, docs/configuration.md, the README's answers
	$(BIN)/python -c 'from ingestd import config; print(config.example_toml(), end="")' >config.example.toml
	$(BIN)/python -c 'from ingestd import config; print(config.reference(), end="")' >docs/configuration.md
	$(BIN)/python -m tests.shown

migrations-check: $(READY)  ## the migrations make exactly what the models say
	.ci/run migrations

check: lint migrations-check test  ## lint, migrations, tests

wheel-smoke: $(READY)  ## build the wheel, install it elsewhere, ingest simulated files with it
	.ci/run wheel

clean:  ## remove what the targets above made
	rm -rf $(VENV) build dist .bench .fuzz .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Built anew when pyproject.toml changes, else not touched.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ingestd needs Python 3.11 or newer with venv (apt install python3-venv); or say make PYTHON=…"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
