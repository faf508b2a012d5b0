# make demo: a two-iteration SPIN campaign on this machine. make test: lint, types and the whole test suite.
# make up: a Prefect server, the deployments and a worker on this machine, without Docker. make down: ends them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

PORT   ?= 4200
RECIPE ?= recipes/demo.yaml

.PHONY: demo test lint format clean up down audit chaos bench-generation bench-training bench-orchestration bench-gpu bench-sweep proof
demo: $(VENV)/.installed
	$(BIN)/spinflow run recipes/demo.yaml

up: $(VENV)/.installed
	$(BIN)/python deployments/local.py up --port $(PORT) --recipe $(RECIPE)

down: $(VENV)/.installed
	$(BIN)/python deployments/local.py down

# Known vulnerabilities of what is installed; needs a network that reaches PyPI's advisory service, so not part of lint.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable || echo "pip-audit found something, or could not reach its service: see above"

# Two files at a time, whole campaigns first: most tests wait for their children.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/rehearsal tests/integration tests/deployments tests

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

# What takes long and rarely tells what no other test does: faults at random moments, a kill in every stage, servers that go and come back.
chaos: $(VENV)/.installed
	$(BIN)/python -m pytest -m long tests

# The speed claims of generation, training and the flow.

bench-generation: $(VENV)/.installed
	$(BIN)/python -m bench.generation

bench-training: $(VENV)/.installed
	$(BIN)/python -m bench.training

bench-orchestration: $(VENV)/.installed
	$(BIN)/python -m bench.orchestration

# Every kind of decoder, tiny: are its log-probs those of a plain forward pass?
bench-sweep: $(VENV)/.installed
	$(BIN)/python -m bench.sweep

# Does self-play keep what it wins, and is it worth more than SFT? About three hours on two cores; goes on where it was ended.
WORK ?= $(or $(TMPDIR),/tmp)/spinflow-proof
proof: $(VENV)/.installed
	$(BIN)/python -m bench.proof --work $(WORK)

# On a machine with a GPU; torch, transformers and accelerate are enough for it, so it also runs outside the venv.
bench-gpu: $(VENV)/.installed
	$(BIN)/python -m bench.gpu.training

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
