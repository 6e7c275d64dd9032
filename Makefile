# Two commands to know: `make demo` and `make test`. Both do all the set-up they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start many processes, which would all compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test prove lint bench lock sbom clean

demo: $(VENV)/.run
	$(BIN)/motthe demo $(DEMO)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not prove" -n auto --maxprocesses 4 --dist worksteal $(PYTEST)

prove: $(VENV)/.dev
	$(BIN)/python -m pytest -m prove -p tests.prove_plugin --timeout 7200 --prove-results docs/prove.json $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy motthe.py
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

lock: $(VENV)/.dev
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras --no-header --extra build --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras --no-header --extra build -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras --no-header tests/frictionless.in -o tests/frictionless.lock

sbom: $(VENV)/.dev
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible -o sbom.json

clean:
	rm -rf $(VENV) motthe-data

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; call make with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run $(VENV)/frictionless/.installed
	$(BIN)/python -m pip install -q --require-hashes --only-binary :all: -r requirements-dev.lock
	touch $@

$(VENV)/frictionless/.installed: tests/frictionless.lock | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/frictionless
	$(VENV)/frictionless/bin/python -m pip install -q --require-hashes --only-binary :all: -r tests/frictionless.lock
	touch $@
