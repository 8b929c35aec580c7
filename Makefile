# make demo: see it run. make test: prove it. Both set everything up in .venv first; a second call finds it done.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
# setuptools warns of every editable installation with folders in it
INSTALL := PYTHONWARNINGS=ignore $(PIP) install -q

.PHONY: help demo test test-gpu lint test-peers bench-peers clean

help:
	@echo "make demo    simulated strip, shipped engines, embedded broker, score card (about 20 s; no torch)"
	@echo "make test    every test; installs torch and the test tools too"
	@echo "make test-gpu     on a machine with a GPU: device, kernels, engines, pipeline against the CPU path"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench-peers  speed against the seed systems' loop, MONAI, SAHI, supervision, Model API (some 15 min; ARGS=--quick)"
	@echo "make test-peers   that those find the same with their whole halo; both in .venv-peers"
	@echo "make clean   remove .venv and what tools left; out/ and runs/ stay"
	@echo "PYTHON=python3.12 names another interpreter; ARGS='...' goes to rust-edge demo or pytest."

demo: $(VENV)/.demo
	$(BIN)/rust-edge demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses=4 $(ARGS)

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests/gpu $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.pip:
	@command -v $(PYTHON) >/dev/null || { echo "got no $(PYTHON); expected Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); expected Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	@echo "installing rust-edge with its demo into $(VENV) ..."
	$(INSTALL) -e '.[demo]'
	@touch $@

# One resolution: the group's pinned torch satisfies the range of the extras.
$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	@echo "installing rust-edge with torch and the test tools into $(VENV) ..."
	$(INSTALL) --group dev -e '.[demo,export,train,keras,openvino,kserve,xlsx]'
	@touch $@ $(VENV)/.demo

# Peers in an environment of their own: they must not decide over the versions that the product is tested with.
test-peers: $(PEERS)/.peers
	$(PEERS)/bin/python -m pytest -m 'peers or not peers' tests/benchmarks $(ARGS)

bench-peers: $(PEERS)/.peers
	$(PEERS)/bin/python benchmarks/peers.py $(ARGS)

$(PEERS)/.peers: pyproject.toml benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	@echo "installing rust-edge, torch and the peers into $(PEERS) ..."
	PYTHONWARNINGS=ignore $(PEERS)/bin/python -m pip --disable-pip-version-check install -q 'torch==2.13.0' pytest pytest-timeout hypothesis -e '.[openvino]'
	PYTHONWARNINGS=ignore $(PEERS)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r benchmarks/requirements-peers.txt
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
