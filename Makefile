# make demo: a two-iteration SPIN campaign on this machine. make test: lint, types and the whole test suite.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint format clean chaos bench-generation bench-orchestration
demo: $(VENV)/.installed
	$(BIN)/spinflow run recipes/demo.yaml

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml deployments/install.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python deployments/install.py
	touch $@

# The long form of the fault tests, and the speed claims of generation and of the flow.
chaos: $(VENV)/.installed
	$(BIN)/python -m pytest -m "chaos or engine" tests/chaos tests/integration/test_endpoints.py

bench-generation: $(VENV)/.installed
	$(BIN)/python -m bench.generation

bench-orchestration: $(VENV)/.installed
	$(BIN)/python -m bench.orchestration

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
