# Everything a person or a machine runs. The environment is one folder, made by venv and pip on first use.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
YOLO ?= .venv-ultralytics
# Modules are compiled when they are first imported, not 26,000 of them during installation: a minute less.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=
# The first interpreter that is new enough; asked only when the environment is made. PYTHON=... overrides it.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$name"; break; }; done)
# One more than there are cores: tests wait for processes that they kill, and for servers.
WORKERS ?= 3

help:  ## what can be asked for
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## MiniLM twice as fast, distilled on Brown sentences, measured beside two baselines
	@$(BIN)/python examples/demo.py

pruner: $(VENV)/.context  ## the pruner of passages that `prune-context --recipe provence` takes, trained from packages
	@$(BIN)/secateur build-pruner

journeys: $(VENV)/.full yolo  ## what a new user does, from data to a result, one after the other: examples/journey_*.py
	@for file in $(filter-out examples/journey_yolo.py,$(sort $(wildcard examples/journey_*.py))); do echo "== $$file"; \
		$(BIN)/python "$$file" "journeys/$$(basename "$$file" .py)"; done

yolo: $(YOLO)/.ready  ## detectors of Ultralytics (AGPL-3.0), in an environment of their own: their tests, and a YOLO cut
	@echo "== examples/journey_yolo.py"; $(YOLO)/bin/python examples/journey_yolo.py journeys/journey_yolo
	@OMP_NUM_THREADS=1 $(YOLO)/bin/python -m pytest -q tests/subjects/network/test_detectors.py -k ultralytics

test: format  ## formatting, types, import contracts, all fast tests
	@{ $(BIN)/lint-imports && $(BIN)/mypy; } >$(VENV)/lint.log 2>&1 & types=$$!; status=0; \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=20 || status=$$?; \
		wait $$types || { cat $(VENV)/lint.log; status=1; }; exit $$status

wide: $(VENV)/.wide  ## further cases, long tests of what shorter ones go through one by one, and peak memory against its plan
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'wide or memory'
	@echo "== every command again, beside a second device"
	@SECATEUR_BESIDE_CARD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) tests/cli

lint: style  ## ruff, import-linter, mypy --strict on the package, and on claims and benchmarks what they call
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file claims/mypy.ini

style: format
	@$(BIN)/lint-imports

format: $(VENV)/.full
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

claims: $(VENV)/.full  ## the papers' claims on real data; RECIPE=name for one system, STALE=1 for rows of older code, PILOT=1 to try them out
	@PILOT=$(PILOT) $(BIN)/python -m claims $(RECIPE) $(if $(STALE),--stale)
	@$(BIN)/python scripts/tables.py

gpu: $(VENV)/.full  ## what only a real card shows, into docs/evidence/gpu.md; without a card one line says so
	@SECATEUR_GPU=1 $(BIN)/python -m pytest -q tests/gpu

docs: $(VENV)/.wide  ## the documentation in site/, and the tables generated from docs/evidence
	@$(BIN)/python scripts/tables.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(VENV)/.bench  ## the benchmarks, one after the other (on a quiet machine)
	@for file in benchmarks/*.py; do [ -e "$$file" ] || continue; echo "== $$file"; $(BIN)/python "$$file"; done
	@echo "== the laws of every network"; $(BIN)/python benchmarks/zoo.py --only laws --limit 240

fuzz: $(VENV)/.full  ## the parsers of what strangers write, a minute each
	@$(PIP) --editable '.[fuzz]'
	@for parser in $$($(BIN)/python scripts/fuzz.py list); do echo "== $$parser"; \
		$(BIN)/python scripts/fuzz.py "$$parser" -max_total_time=60 -verbosity=0; done

changelog: $(VENV)/.wide  ## gather changes/ into CHANGELOG.md for the version in pyproject.toml
	@$(BIN)/towncrier build --yes --version "$$($(BIN)/python -c 'import secateur; print(secateur.__version__)')"

clean:  ## remove what was built: the environment, caches, the site; not the demo's results
	@rm -rf $(VENV) $(YOLO) site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src tests claims examples scripts benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# bin/pip is the last thing venv writes, so an interrupted venv is made anew. The pip that Python 3.11 brings looks for
# versions twice as long as a newer one.
$(BIN)/pip:
	@if [ -z "$(PYTHON)" ]; then echo "secateur needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3" >&2; exit 2; fi
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(VENV) || { echo "Python's venv module is missing: on Debian, apt-get install python3-venv" >&2; exit 2; }
	@$(PIP) 'pip>=25'

$(VENV)/.base: pyproject.toml | $(BIN)/pip
	@echo "Installing secateur into $(VENV) (the first time takes some minutes)"
	@$(PIP) --editable '.[embed]'
	@touch $@

$(VENV)/.context: $(VENV)/.base
	@$(PIP) --editable '.[context]'
	@touch $@

$(VENV)/.full: pyproject.toml | $(BIN)/pip
	@echo "Installing secateur with its test tools into $(VENV) (the first time takes some minutes)"
	@$(PIP) --editable '.[all,test]'
	@touch $(VENV)/.base $(VENV)/.context $@

# A sixth of the whole, which make test does without.
$(VENV)/.wide: $(VENV)/.full
	@$(PIP) --editable '.[docs,ray]'
	@touch $@

$(VENV)/.bench: $(VENV)/.full
	@$(PIP) --editable '.[bench]'
	@touch $@

# Ultralytics alone is installed there: all else is that of $(VENV).
$(YOLO)/.ready: $(VENV)/.full
	@$(BIN)/python -m venv --clear $(YOLO)
	@$(BIN)/python -c 'import sysconfig; place = sysconfig.get_paths()["purelib"]; print(f"import site; site.addsitedir({place!r})")' \
		>"$$($(YOLO)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/secateur-environment.pth"
	@echo "Installing Ultralytics (AGPL-3.0) into $(YOLO)"
	@$(YOLO)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile 'ultralytics>=8.3.200,<9'
	@touch $@

.PHONY: help demo pruner journeys yolo test wide lint style claims gpu docs bench changelog clean
