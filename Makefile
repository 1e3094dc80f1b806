# Every target makes .venv and installs what it needs; a second call finds it and starts at once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Installed again when the requirements or their pins change.
HASH := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN_EXTRAS := $(VENV)/.installed-run-$(HASH)
TEST_EXTRAS := $(VENV)/.installed-test-$(HASH)
DOCS_EXTRAS := $(VENV)/.installed-docs-$(HASH)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check docs clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(RUN_EXTRAS) ## synthetic data, teacher, distillation, export, benchmark; on the CPU, in minutes
	test -f data/quickstart/dataset.json || $(BIN)/bevkd data synth data/quickstart --scenes 20 --val-scenes 4 --seed 0 --profile quickstart --workers 2
	$(BIN)/bevkd distill recipes/quickstart.yaml
	$(BIN)/bevkd export --trt fp16
	$(BIN)/bevkd benchmark --engine student.onnx

test: $(TEST_EXTRAS) ## the whole test suite
	$(BIN)/python -m pytest

check: $(TEST_EXTRAS) ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS_EXTRAS) ## the documentation site into site/, warnings as errors
	$(BIN)/mkdocs build --strict

clean: ## remove the environment and everything that tools cached
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name yours: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(RUN_EXTRAS): | $(BIN)/python
	$(PIP_INSTALL) --editable '.[train,onnx,rtx]'
	touch $@

# nuscenes-devkit is the reference of the evaluation tests. Its metadata wants numpy<2, which its evaluation does
# not need; the extra `test` brings the rest of what it imports.
$(TEST_EXTRAS): $(RUN_EXTRAS)
	$(PIP_INSTALL) --editable '.[train,onnx,rtx,docs,test]'
	$(PIP_INSTALL) --no-deps nuscenes-devkit
	touch $@

$(DOCS_EXTRAS): | $(BIN)/python
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@
