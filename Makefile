# make demo: a two-iteration SPIN campaign on this machine. make test: lint, types and the whole test suite.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint format clean
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

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
