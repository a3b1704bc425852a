# `make help` lists the targets. Needs Python 3.11 or newer with venv; everything else is put into
# .venv, .venv-esptool4 and .venv-labgrid. PYTHON=/path/to/python3 chooses the interpreter.

PYTHON ?= python3
VENV := .venv
VENV4 := .venv-esptool4
VENV_LABGRID := .venv-labgrid

# The last release of esptool 4: people still use it, and its reset sequences differ from 5's.
ESPTOOL4_VERSION := 4.8.1

# In an environment of its own: it brings a pyserial of its own.
LABGRID_VERSION := 26.0.1

# Source packages of others, for their own test suites.
PEERS := .peers
PYSERIAL_VERSION := 3.5

PIP_INSTALL := pip install --quiet --disable-pip-version-check

# Tests find esptool and the other tools on PATH, as their users do.
TEST_ENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" \
	ESPTOOL4="$(CURDIR)/$(VENV4)/bin/esptool.py" \
	LABGRID="$(CURDIR)/$(VENV_LABGRID)/bin" \
	PYSERIAL_SUITE="$(CURDIR)/$(PEERS)/pyserial-$(PYSERIAL_VERSION)/test"

# Clients over RFC 2217 wait most of their time, so several tests at once take the time of one. Who
# is done takes tests from who is not: else one process has the slow ones of a folder to itself.
PYTEST := $(VENV)/bin/python -m pytest -n 5 --dist worksteal

# Tests run on uvloop. These, which touch sockets, ttys and TLS, run on asyncio's loop as well.
ON_ASYNCIO := tests/scenarios tests/net tests/port tests/session tests/serialport tests/web \
	tests/test_clock.py tests/test_status.py tests/end_to_end/test_raw_ports.py \
	tests/end_to_end/test_faults.py tests/end_to_end/test_bad_input.py \
	tests/end_to_end/test_limits.py

# Neither processes nor networks, next to no waiting: as many at once as there are cores.
FAST := tests/protocol tests/config $(wildcard tests/port) tests/test_architecture.py

# Stamps, one per set of packages: newer than pyproject.toml means installed.
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
MUTATION_STAMP := $(VENV)/.installed-mutation
ESPTOOL4_STAMP := $(VENV4)/.installed-$(ESPTOOL4_VERSION)
LABGRID_STAMP := $(VENV_LABGRID)/.installed-$(LABGRID_VERSION)
PYSERIAL_STAMP := $(PEERS)/.fetched-pyserial-$(PYSERIAL_VERSION)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-fast test-all test-asyncio lint reset-matrix fuzz jitter mutation soak hostile remote-flashing bench bench-quick config-docs clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

run: $(RUN_STAMP) ## try the gateway on simulated boards, no hardware needed
	@$(VENV)/bin/esp-gateway demo

test: lint $(LABGRID_STAMP) $(PYSERIAL_STAMP) ## formatting, lint, types and all tests but the slow ones
	@$(TEST_ENV) $(PYTEST) -m "not slow"
	@$(TEST_ENV) $(PYTEST) --loop asyncio -m "not slow" $(ON_ASYNCIO)

test-fast: $(TEST_STAMP) ## protocol, configuration, resets and port state only (under a minute)
	@$(VENV)/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(FAST)

test-all: lint $(LABGRID_STAMP) $(PYSERIAL_STAMP) ## the same with the tests that take minutes
	@$(TEST_ENV) $(PYTEST)
	@$(TEST_ENV) $(PYTEST) --loop asyncio $(ON_ASYNCIO)

test-asyncio: lint $(LABGRID_STAMP) ## all tests but the slow ones on asyncio's loop, not uvloop's
	@$(TEST_ENV) $(PYTEST) --loop asyncio -m "not slow"

lint: $(TEST_STAMP) $(ESPTOOL4_STAMP)
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/mypy

reset-matrix: $(TEST_STAMP) $(ESPTOOL4_STAMP) ## every tool's resets over delays, as a table
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.reset_matrix

fuzz: $(TEST_STAMP) ## 10 MB of broken client streams, 40,000 broken HTTP requests (a few minutes)
	@$(VENV)/bin/python -m tests.tools.fuzz $(FUZZ_ARGS)
	@$(VENV)/bin/python -m tests.tools.http_fuzz $(HTTP_FUZZ_ARGS)

jitter: $(TEST_STAMP) $(ESPTOOL4_STAMP) $(LABGRID_STAMP) ## the tests on a machine that is slow at the wrong moments (5 minutes)
	@$(TEST_ENV) $(PYTEST) --loop asyncio -p tests.tools.jitter -m "not slow" --ignore tests/end_to_end $(JITTER_ARGS)

mutation: $(MUTATION_STAMP) ## how many broken lines the tests of the core packages notice (half an hour)
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.mutation $(MUTATION_ARGS)

soak: $(TEST_STAMP) ## 16 boards, dying clients, replugs: nothing lost or left (10 minutes)
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.soak $(SOAK_ARGS)

hostile: $(TEST_STAMP) ## 100 attackers beside one flasher and one console (10 minutes)
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.hostile $(HOSTILE_ARGS)

remote-flashing: $(TEST_STAMP) ## esptool over slow networks, into docs/remote-flashing.md (hours)
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.remote_flashing $(REMOTE_FLASHING_ARGS)

bench: $(TEST_STAMP) ## the gateway and its peers side by side, into docs/performance.md (two hours)
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.benchmarks
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.remote_flashing --delays 0 --again

bench-quick: $(TEST_STAMP) ## the most important of it in under a minute, printed only
	@$(TEST_ENV) $(VENV)/bin/python -m tests.tools.benchmarks --quick

config-docs: $(TEST_STAMP) ## the tables of docs/config.md and config/gateway.schema.json, from the table of keys
	@$(VENV)/bin/python -m tests.tools.config_docs

clean: ## remove what make and the tests have made
	rm -rf $(VENV) $(VENV4) $(VENV_LABGRID) $(PEERS) build dist *.egg-info fuzz-failures
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gateway tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One line for each thing that can be wrong with the interpreter, before pip says it in twenty.
# Part of the recipes, not a target: with a finished venv nobody asks for PYTHON any more.
define CHECK_PYTHON
@command -v $(PYTHON) >/dev/null || \
	{ echo "$(PYTHON) not found: install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$$($(PYTHON) --version 2>&1) is too old: Python 3.11 or newer is needed" \
		"(make PYTHON=...)" >&2; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "$(PYTHON) can't make virtual environments: sudo apt install python3-venv" >&2; exit 1; }
endef

$(RUN_STAMP): pyproject.toml
	$(CHECK_PYTHON)
	@echo "installing the gateway into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/$(PIP_INSTALL) --editable '.[web]'
	@touch $@

$(TEST_STAMP): pyproject.toml
	$(CHECK_PYTHON)
	@echo "installing the gateway and its test tools into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/$(PIP_INSTALL) --editable '.[test]'
	@touch $(RUN_STAMP) $@

$(MUTATION_STAMP): $(TEST_STAMP) $(ESPTOOL4_STAMP)
	@echo "installing the tools for mutation testing into $(VENV)"
	@$(VENV)/bin/$(PIP_INSTALL) --editable '.[test,mutation]'
	@touch $@

$(ESPTOOL4_STAMP):
	$(CHECK_PYTHON)
	@echo "installing esptool $(ESPTOOL4_VERSION) into $(VENV4)"
	@$(PYTHON) -m venv $(VENV4)
	@$(VENV4)/bin/$(PIP_INSTALL) esptool==$(ESPTOOL4_VERSION)
	@touch $@

# Where it can't be installed (grpc has no wheels for every machine), its tests are skipped.
$(LABGRID_STAMP):
	$(CHECK_PYTHON)
	@echo "installing labgrid $(LABGRID_VERSION) into $(VENV_LABGRID)"
	@$(PYTHON) -m venv $(VENV_LABGRID)
	@if $(VENV_LABGRID)/bin/$(PIP_INSTALL) --only-binary grpcio labgrid==$(LABGRID_VERSION); \
		then touch $@; else echo "not installed: its tests are skipped"; fi

# Its wheel leaves the tests out.
$(PYSERIAL_STAMP): $(TEST_STAMP)
	@echo "fetching pyserial's own tests into $(PEERS)"
	@mkdir -p $(PEERS)
	@if $(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary pyserial \
		--dest $(PEERS) pyserial==$(PYSERIAL_VERSION) && \
		tar -xzf $(PEERS)/pyserial-$(PYSERIAL_VERSION).tar.gz -C $(PEERS); \
		then touch $@; else echo "not fetched: its tests are skipped"; fi
