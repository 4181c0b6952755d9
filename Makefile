# One word per chore; `make` alone lists them. Each sets up what it needs: a .venv here, everything from the package registry.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TWO_CORES := -n 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-shapes test-models test-peers check fix bench bench-methods train docs docs-models clean

help: ## list the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with Glowmap and all that its chores need

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[torchvision,terminal]" --group dev
	@touch $@

demo: $(READY) ## explain drawn streets with the models that come along; writes demo-out/
	$(BIN)/glowmap demo --out demo-out

test: $(READY) ## run the tests on two cores (under four minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TWO_CORES)

test-shapes: $(READY) ## check every annotation at run time, tensors' shapes too, on one cell of each test (under five minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TWO_CORES) --representatives --jaxtyping-packages=glowmap,beartype.beartype

test-models: $(READY) ## find the layer of every architecture in tests/zoo (some ten minutes)
	$(BIN)/python -m pip install --quiet --group models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TWO_CORES) tests/zoo

test-peers: $(READY) ## compare with pytorch-grad-cam, TorchCAM and Captum, which it installs (under a minute)
	$(BIN)/python -m pip install --quiet --group peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/peers

check: $(READY) ## format, lint, types and floor plan, without changing a file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## time and memory beside a bare forward pass and the plain recipe, in one run
	$(BIN)/python benchmarks/cost.py

bench-methods: $(READY) ## time and memory of single methods beside pytorch-grad-cam and TorchCAM, which it installs
	$(BIN)/python -m pip install --quiet --group peers
	$(BIN)/python benchmarks/methods.py

train: $(READY) ## train the demo's models anew, under half an hour on two cores
	$(BIN)/python -m glowmap.demo.train --out src/glowmap/demo/weights

docs: $(READY) ## draw the README's pictures, and write docs/cautions.md and the table of docs/methods.md
	$(BIN)/python docs/refresh.py

docs-models: $(READY) ## write docs/models.md: which layer is found for every architecture (some ten minutes)
	$(BIN)/python -m pip install --quiet --group models
	$(BIN)/python docs/zoo.py

clean: ## remove .venv, caches and the demo's output
	rm -rf .venv demo-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
