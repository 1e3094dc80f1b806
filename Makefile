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

# mmdet3d, the reference of the data path, lives in an environment of its own: it needs numpy<2. mmcv's operators take
# up to half an hour to compile, so their wheel is kept where a second checkout finds it.
MMDET3D_VENV := .venv-mmdet3d
MMDET3D_BIN := $(MMDET3D_VENV)/bin
MMDET3D_HASH := $(shell cat pyproject.toml constraints-mmdet3d.txt | cksum | cut -d' ' -f1)
MMDET3D_READY := $(MMDET3D_VENV)/.installed-$(MMDET3D_HASH)
MMDET3D_PIP := $(MMDET3D_BIN)/python -m pip install --disable-pip-version-check --constraint constraints-mmdet3d.txt
MMCV := mmcv==2.1.0
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bevkd
MMCV_WHEELS = $(CACHE)/wheels/mmcv-2.1.0-torch-2.13.0-$(shell $(MMDET3D_BIN)/python -c 'import sysconfig, sys; print(sys.implementation.cache_tag, sysconfig.get_platform(), sep="-")')

.PHONY: help demo test mmdet3d test-mmdet3d check docs clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/'

demo: $(RUN_EXTRAS) ## synthetic data, teacher, distillation, export, benchmark; on the CPU, in minutes
	test -f data/quickstart/dataset.json || $(BIN)/bevkd data synth data/quickstart --scenes 20 --val-scenes 4 --seed 0 --profile quickstart --workers 2
	$(BIN)/bevkd data check data/quickstart --workers 2
	$(BIN)/bevkd distill recipes/quickstart.yaml
	$(BIN)/bevkd export --trt fp16
	$(BIN)/bevkd benchmark --engine student.onnx

test: $(TEST_EXTRAS) ## the whole test suite
	$(BIN)/python -m pytest

# dash comes with open3d; its pytest plugin warns of itself, and warnings are errors here.
mmdet3d: $(MMDET3D_READY) ## an environment with mmdet3d in .venv-mmdet3d, for its models as teachers (compiles mmcv once)
	@echo "mmdet3d is there: $(MMDET3D_BIN)/bevkd teacher cache RECIPE, $(MMDET3D_BIN)/bevkd distill RECIPE"

test-mmdet3d: $(MMDET3D_READY) ## what we say about mmdet3d against mmdet3d itself (compiles mmcv once)
	$(MMDET3D_BIN)/python -m pytest -p no:dash tests/mmdet3d

check: $(TEST_EXTRAS) ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS_EXTRAS) ## the documentation site into site/, warnings as errors
	$(BIN)/mkdocs build --strict

clean: ## remove the environment and everything that tools cached
	rm -rf $(VENV) $(MMDET3D_VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

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

$(MMDET3D_BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(MMDET3D_VENV)

# The wheel appears under its final name only when it is whole: two builds at once do not disturb each other.
$(MMDET3D_READY): | $(MMDET3D_BIN)/python
	$(MMDET3D_PIP) torch numpy setuptools wheel ninja psutil
	ls $(MMCV_WHEELS)/mmcv-*.whl >/dev/null 2>&1 || { \
		mkdir -p $(MMCV_WHEELS) && fresh=$$(mktemp -d $(MMCV_WHEELS)/build.XXXXXX) && \
		MMCV_WITH_OPS=1 $(MMDET3D_BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir $$fresh $(MMCV) && \
		mv $$fresh/mmcv-*.whl $(MMCV_WHEELS)/ && rmdir $$fresh; }
	$(MMDET3D_PIP) $(MMCV_WHEELS)/mmcv-*.whl mmengine==0.10.7 mmdet==3.3.0 mmdet3d==1.4.0
	$(MMDET3D_PIP) --editable '.[train]' pytest hypothesis
	touch $@
