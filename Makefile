# setup, demo, test, bench. One virtual environment, made from the hash-locked requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := $(VENV)/.peers
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmbus needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# The vendors' clients that the tests compare with.
$(PEERS): $(STAMP) requirements-peers.lock
	$(INSTALL) --require-hashes -r requirements-peers.lock
	@touch $(PEERS)

demo: setup
	$(BIN)/llmbus demo

test: setup $(PEERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

bench: setup
	$(BIN)/python -m tests.bench.bus
	$(BIN)/python -m tests.bench.failover
	$(BIN)/python -m tests.bench.swap
	$(BIN)/python -m tests.bench.idle

# The newest releases that are at least a week old, for every platform; needs uv.
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --universal --generate-hashes --no-emit-index-url \
	--no-annotate --python-version 3.11 \
	--exclude-newer "$$($(PYTHON) -c 'import datetime as d; print((d.datetime.now(d.UTC) - d.timedelta(days=7)).date())')" \
	pyproject.toml --group dev
lock:
	$(LOCK) -o requirements.lock
	$(LOCK) --group peers -c requirements.lock -o requirements-peers.lock

clean:
	rm -rf $(VENV)
