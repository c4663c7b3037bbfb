# What a clone of RunGPT can do. Everything is installed into $(VENV); nothing outside the clone changes.
#   make serve MODEL=smollm2 ARGS="--replicas 2"
#   make test PYTEST_ARGS="tests/unit -k schema"
#   make install PYTHON=/usr/bin/python3.12

PYTHON ?= python3
VENV ?= .venv
MODEL ?=
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 3
KERNELS ?= all

# Python keeps what it compiles: each of hundreds of processes, and each worker of the tests, would compile it again.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPECHECK := build/typecheck
# What must work without torch, on every Python that we support.
LEAN_TESTS := $(wildcard tests/unit/api tests/unit/client tests/unit/gateway tests/unit/link \
	tests/integration/client tests/integration/gateway)

# A test file stays with one worker, so that its tests share what they start.
IN_PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# pip shows its progress bars on a terminal, and only errors elsewhere.
PIP_INSTALL := -m pip --disable-pip-version-check install $$(test -t 1 || echo --quiet)

define check_python
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	echo "RunGPT needs Python 3.11 to 3.13; $(PYTHON) is: $$($(PYTHON) -V 2>&1 | head -n 1)." \
	"Name another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
endef

# Types are checked beside the tests, when these leave a core; the result is shown at the end.
define run_tests
@mkdir -p build; nice -n 19 $(MAKE) --no-print-directory typecheck >build/types.log 2>&1 & types=$$!; \
$(BIN)/python -m pytest $(IN_PARALLEL) $(1) $(PYTEST_ARGS); tests=$$?; \
wait $$types; types=$$?; cat build/types.log; exit $$((tests ? tests : types))
endef

.DEFAULT_GOAL := help
.PHONY: help install serve wheel check test lint typecheck test-lean test-studies test-clients campaign audit bench-startup clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

install: $(INSTALLED) ## set up .venv with the tested versions of everything

$(INSTALLED): pyproject.toml constraints.txt
	$(check_python)
	@echo "==> creating a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> installing RunGPT and its tested dependencies (some minutes the first time: torch is large)"
	@$(BIN)/python $(PIP_INSTALL) --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true # what pip does with one core
	@touch $@

serve: install ## serve MODEL (default: smollm2) on gRPC 51000 and HTTP 52000; ARGS are options of `rungpt serve`
	@exec $(BIN)/rungpt serve $(MODEL) $(ARGS)

wheel: ## build a wheel in dist/ with kernels for AVX2, AVX-512 and AMX (KERNELS=all), for systems without a compiler
	$(check_python)
	@echo "==> compiling the kernels into a wheel (a minute or two)"
	@rm -rf build/lib build/bdist.*
	@RUNGPT_PREBUILT="$(KERNELS)" $(PYTHON) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

check: lint ## check style, then types beside the unit tests
	$(call run_tests,tests/unit)

test: lint ## check style, then types beside all tests, with WORKERS processes; PYTEST_ARGS chooses some
	@echo "==> running the tests (the default model, 94 MB, is downloaded the first time)"
	$(call run_tests,)

lint: install ## check style
	@echo "==> checking style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python scripts/check_docstrings.py

# mypy cannot follow the mapping of executors/ and flows/ into run_gpt, so it reads a folder in which they lie there.
typecheck: install ## check types
	@echo "==> checking types"
	@rm -rf $(TYPECHECK) && mkdir -p $(TYPECHECK)/run_gpt
	@ln -s "$(CURDIR)"/run_gpt/* "$(CURDIR)/executors" "$(CURDIR)/flows" "$(CURDIR)"/tests/typecheck/* $(TYPECHECK)/run_gpt/
	@cd $(TYPECHECK) && "$(abspath $(BIN))/mypy" --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

test-lean: ## run the tests of gateway and client with PYTHON in an environment without torch
	$(check_python)
	@set -e; venv=.venv-lean-$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	echo "==> installing gateway and client, without the model libraries, into $$venv"; \
	$(PYTHON) -m venv $$venv; \
	$(PYTHON) scripts/lean_requirements.py > $$venv/requirements.txt; \
	$$venv/bin/python $(PIP_INSTALL) --no-compile --constraint constraints.txt --requirement $$venv/requirements.txt; \
	$$venv/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .; \
	echo "==> running the tests of gateway and client with $$($$venv/bin/python -V)"; \
	$$venv/bin/python -m pytest $(IN_PARALLEL) $(LEAN_TESTS)

test-studies: install ## test the studies of studies/, which `make test` leaves out
	@$(BIN)/python -m pytest studies $(PYTEST_ARGS)

test-clients: install ## test with other people's clients, of which `make test` runs the most used only
	@$(BIN)/python -m pytest tests/clients $(PYTEST_ARGS)

campaign: install ## attack a server that it starts on loopback, for up to 15 minutes, and print what it held; ARGS: --help
	@$(BIN)/python -m studies.campaign $(ARGS)

audit: install ## look the tested versions up in an index of advisories, where one can be reached
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python $(PIP_INSTALL) pip-audit
	@$(BIN)/python scripts/audit.py .venv-audit/bin/pip-audit

bench-startup: install ## measure how long `rungpt serve` takes to be ready, and `rungpt --help` to answer
	@$(BIN)/python scripts/startup_benchmark.py

clean: ## remove what was built and installed here; the model cache stays
	@rm -rf .venv .venv-audit .venv-lean-* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis rungpt.egg-info
