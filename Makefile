# One command per task.  `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For meson's children: the build's own tools first; last what was unpacked for
# tests (.ci/prerequisites).
export PATH := $(CURDIR)/$(BIN):$(PATH):$(CURDIR)/.tools/usr/bin
STAMP := $(VENV)/.installed
C_BUILD := build-c
GENERATED := examples/echo/gen
ECHO_PROTO := examples/echo/echo.proto
STORE_STUBS := examples/store/stubs
STORE_PROTO := examples/store/store.proto

.PHONY: help demo cluster store test prerequisites test-c test-python weaken lint fuzz coverage bench generate checkgenerate clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml meson.build meson.options sdk/meson.build codegen/meson.build build_ffi.py
	@echo "[1/3] environment in $(VENV)"
	@.ci/prerequisites $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@echo "[2/3] tools and dependencies"
	@$(BIN)/python -m pip install --progress-bar on --group dev "cffi>=2.1" | grep -v "already satisfied" || true
	@echo "[3/3] the C core and the package"
	@$(BIN)/python -m pip install --no-build-isolation --progress-bar on -e ".[gen,compress,dns]" | grep -v "already satisfied" || true
	@$(BIN)/python -c "import tidewire"
	@touch $@

$(GENERATED)/__init__.py: $(ECHO_PROTO) $(wildcard codegen/tidewire_gen/*.py) $(STAMP)
	@$(BIN)/tidewire gen $(ECHO_PROTO) -I examples/echo -o $(GENERATED) -q
	@touch $@

$(STORE_STUBS)/__init__.py: $(STORE_PROTO) $(wildcard codegen/tidewire_gen/*.py) $(STAMP)
	@$(BIN)/tidewire gen $(STORE_PROTO) -I examples/store -o $(STORE_STUBS) -q
	@touch $@

.PHONY: soak
soak: $(STAMP) ## load and faults; MINUTES=20, SEED=n repeats a run
	@$(BIN)/python tests/soak/soak.py --minutes $(or $(MINUTES),20) --seed $(or $(SEED),0)

.PHONY: drill
drill: $(STAMP) ## a cluster with a slow, a dying and a leaving server; MINUTES=10, BALANCER=la, SEED=n
	@$(BIN)/python tests/soak/drill.py --minutes $(or $(MINUTES),10) --balancer $(or $(BALANCER),rr) --seed $(or $(SEED),0)

demo: $(STAMP) $(GENERATED)/__init__.py ## build, generate stubs, run the echo service and watch it
	@$(BIN)/python examples/echo/demo.py

cluster: $(STAMP) $(GENERATED)/__init__.py ## three servers of a list in etcd under load, one leaves and one joins; BALANCER=la
	@.ci/prerequisites $(PYTHON) etcd
	@$(BIN)/python examples/cluster/run.py --balancer $(or $(BALANCER),rr)

store: $(STAMP) $(STORE_STUBS)/__init__.py ## run the example service in examples/store; TOKEN=name=secret
	@$(BIN)/python examples/store/serve.py --admin 127.0.0.1:8011 --token $(or $(TOKEN),demo=demo)

test: prerequisites test-c test-python lint checkgenerate ## everything: C tests, Python tests, lint, types

prerequisites:
	@.ci/prerequisites $(PYTHON) test

test-c: $(STAMP) ## C tests under ASan+UBSan, stress under TSan
	@test -f $(C_BUILD)/build.ninja || $(BIN)/meson setup $(C_BUILD) -Dextension=false -Dcore_tests=true -Dbuildtype=debugoptimized -Dwerror=true
	@$(BIN)/meson test -C $(C_BUILD) --print-errorlogs

test-python: $(STAMP) $(GENERATED)/__init__.py $(STORE_STUBS)/__init__.py ## Python tests
	@$(BIN)/python -m pytest

weaken: $(STAMP) ## each memory order weakened, and found (long); SITES=word picks
	@$(BIN)/python tests/weaken/weaken.py $(SITES)

lint: $(STAMP) $(GENERATED)/__init__.py $(STORE_STUBS)/__init__.py ## ruff, mypy, pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright

fuzz: ## libFuzzer over the C core; SECONDS=n for each target, TARGETS="a b" for some
	@.ci/prerequisites $(PYTHON) fuzz
	@tests/fuzz/run $(or $(SECONDS),60) $(TARGETS)

coverage: $(STAMP) ## line coverage of csrc by the C tests; fails below 90 %
	@$(BIN)/python -m pip install --quiet --group coverage
	@test -f build-coverage/build.ninja || $(BIN)/meson setup build-coverage -Dextension=false -Dcore_tests=true -Dbuildtype=debugoptimized -Db_coverage=true -Dc_args=-fprofile-update=atomic >/dev/null
	@find build-coverage -name '*.gcda' -delete
	@$(BIN)/meson test -C build-coverage --suite asan --timeout-multiplier 3 --print-errorlogs
	@$(BIN)/gcovr --root . --filter csrc/ --merge-mode-functions separate --gcov-ignore-errors no_working_dir_found --fail-under-line 90 build-coverage

bench: $(STAMP) $(GENERATED)/__init__.py ## the table of docs/performance.md; ROWS=1,2 runs some
	@$(BIN)/python -m pip install --quiet --group bench
	@$(BIN)/python bench/run.py $(if $(ROWS),--rows $(ROWS))

generate: $(STAMP) ## generated files that are checked in
	@$(BIN)/python tests/codegen/update.py
	@$(BIN)/python tests/fuzz/make_corpus.py

checkgenerate: $(STAMP) ## fails when a generated file is out of date
	@$(BIN)/python -m pytest -q tests/codegen/test_golden.py
	@$(BIN)/python tests/fuzz/make_corpus.py --check

clean: ## what was built
	rm -rf $(VENV) build build-c build-fuzz build-coverage $(GENERATED) $(STORE_STUBS)
