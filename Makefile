# Everything runs in .venv, made on first use from the first Python >= 3.11 found.
# Another one: make test PYTHON=/path/to/python3.13

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

is_new_enough = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $(call is_new_enough,$$python); then echo $$python; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := python -m pip --disable-pip-version-check --no-input
ARGS ?=

.PHONY: help demo test test-all test-filesystems test-pysyncobj-versions test-patroni lint format bench torture simulate clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(VENV)/.test  ## three nodes, writes, kill -9, a comparison; ARGS="--commands 500 --folder DIR"
	@$(BIN)/python examples/demo_cluster.py $(ARGS)

# in the order of their names: by their numbers of tests the loops, which have few, come last
test: $(VENV)/.test  ## the test suite, on all cores; ARGS="-k name" to choose
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all:  ## the test suite under every supported Python on this machine (pyenv's included)
	@tried=; failed=; for version in 3.11 3.12 3.13 3.14; do \
		for python in python$$version ~/.pyenv/versions/$$version.*/bin/python; do \
			$(call is_new_enough,$$python) || continue; \
			echo "== $$python"; tried+=" $$version"; \
			$(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$version \
				|| failed+=" $$version"; \
			break; \
		done; \
	done; echo "tried:$${tried:- none}; failed:$${failed:- none}"; test -n "$$tried" -a -z "$$failed"

test-filesystems: $(VENV)/.test  ## the store's tests on ext4, XFS, btrfs, tmpfs, overlayfs; needs root; ARGS="--only xfs"
	$(BIN)/python -m tests.filesystems $(ARGS)

# pysyncobj's own journal leaves files open in the older versions, and so does its dumping
PYSYNCOBJ ?= 0.3.11 0.3.12 0.3.13 0.3.14 0.3.15 0.3.16 0.3.17
PYSYNCOBJ_TESTS := tests/test_pysyncobj_repairs.py tests/test_pysyncobj_journal.py tests/test_pysyncobj_nodes.py
PYSYNCOBJ_WARNINGS := -W ignore::ResourceWarning -W ignore::FutureWarning \
	-W ignore::pytest.PytestUnraisableExceptionWarning

test-pysyncobj-versions: $(VENV)/.test  ## the adapter's tests under each pysyncobj, and rolling changes; PYSYNCOBJ="0.3.11 0.3.17" to choose
	@failed=; for version in $(PYSYNCOBJ); do \
		echo "== pysyncobj $$version"; venv=.venv-pysyncobj-$$version; \
		$(MAKE) --no-print-directory $$venv/.test VENV=$$venv \
			&& $$venv/bin/$(PIP) install --quiet pysyncobj==$$version \
			&& $$venv/bin/python -m pytest $(PYSYNCOBJ_WARNINGS) $(PYSYNCOBJ_TESTS) $(ARGS) \
			&& $(BIN)/python -m tests.pysyncobj_nodes.rolling --older $$venv/bin/python \
			|| failed+=" $$version"; \
	done; echo "tried: $(PYSYNCOBJ); failed:$${failed:- none}"; test -z "$$failed"

test-patroni:  ## takes a Raft cluster of Patroni's own over to WAL directories and back
	@$(MAKE) --no-print-directory .venv-patroni/.test VENV=.venv-patroni
	.venv-patroni/bin/$(PIP) install --quiet 'patroni[raft]' psycopg2-binary
	.venv-patroni/bin/python -m pytest $(PYSYNCOBJ_WARNINGS) tests/patroni_raft/takeover.py $(ARGS)

lint: $(VENV)/.lint  ## style, format, types, import order
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.lint  ## mends style and format where that can be done
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench  ## measures the store against its peers; ARGS=--quick for a minute's worth
	$(BIN)/python benchmarks/store.py $(ARGS)

torture: $(VENV)/.test  ## every loop of the proofs whole, then random histories; ARGS="--seconds 600"
	$(BIN)/python -m tests.proofs $(ARGS)
	$(BIN)/python -m hqlwal_raft.testing.simulation --seed 1000 --seconds 300
	$(BIN)/python -m tests.pysyncobj_nodes.torture --rounds 10
	$(BIN)/python -m tests.pysyncobj_nodes.weather --rounds 30

simulate: $(VENV)/.test  ## simulated clusters from seeds, until one breaks a promise; ARGS="--seconds 600 --seed 1"
	$(BIN)/python -m hqlwal_raft.testing.simulation $(ARGS)

clean:  ## removes the virtual environments and what the tools leave behind
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -prune -exec rm -rf {} +

# One stamp per dependency group, so that a second run installs nothing. The pip that came
# with the interpreter may not know dependency groups (25.1 does), so it is renewed first.
$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "hqlwal_raft needs Python >= 3.11; none was found" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.%: pyproject.toml | $(VENV)/.made
	$(BIN)/$(PIP) install --quiet --editable . --group $*
	@touch $@

.PRECIOUS: $(VENV)/.%
