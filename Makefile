# `make` alone says what there is. A machine with Python 3.11 (or 3.12, 3.13) and make is enough.
#
#   PYTHON=...       the interpreter that .venv is made from
#   TORCH_INDEX=...  where torch alone comes from, such as https://download.pytorch.org/whl/cpu: PyPI's torch brings
#                    CUDA libraries of some gigabytes along
#   PYTEST=...       further options for pytest, such as PYTEST="-k range_image"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST ?=
# TensorFlow 2.15 and detection3d have 3.11 alone in common.
EVALUATION_PYTHON ?= python3.11

VENV := .venv
BIN := $(VENV)/bin
# Its time says when the environment was last brought up to date.
STAMP := $(VENV)/.up-to-date
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

PROTOS := detection3d/protos
# Code of protoc 25 loads under protobuf 4.25 to 7; a newer one's would ask for a newer protobuf.
PROTOC_VENV := build/protoc

.PHONY: help env evaluation-env demo test test-slow lint format protos wheel clean

help:  ## print this
	@echo 'usage: make <target> [TORCH_INDEX=https://download.pytorch.org/whl/cpu] [PYTHON=python3.11]'
	@echo
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## (.*)/\1|\2/' \
	  | while IFS='|' read -r target text; do printf '  %-15s %s\n' "$$target" "$$text"; done

env: $(STAMP)  ## build .venv, or bring it up to date

evaluation-env:  ## build .evaluation-env, with Waymo's own package (EVALUATION_PYTHON=python3.11); some slow tests need it
	PYTHON=$(EVALUATION_PYTHON) docker/evaluation_environment.sh .evaluation-env

demo: $(STAMP)  ## the main job in small on the CPU: synthetic data, training, evaluation, report
	$(BIN)/python tools/demo.py

test: lint  ## lint, then the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu' $(PYTEST)

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu' $(PYTEST)

lint: $(STAMP)  ## style, format, types, and who may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(STAMP)  ## generate waymo_pb2 from waymo.proto
	$(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip --disable-pip-version-check install -q 'grpcio-tools==1.60.1' 'setuptools<81'
	$(PROTOC_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTOS)/waymo.proto

wheel: $(STAMP)  ## build dist/detection3d-*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-deps --wheel-dir dist .

clean:  ## remove .venv, the demo's output and all caches; keeps runs/ and data/
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find detection3d tests tools -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  f"error: {sys.executable} is Python {v[0]}.{v[1]}; 3.11 to 3.13 are supported: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@# Without its dependencies, which then come from the usual place with the others.
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) -e '.[train,dev]'
	@touch $@
