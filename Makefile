# Every target works from a fresh clone: it first makes .venv, the project's own environment.
PYTHON ?= python3
BIN := .venv/bin
SNRECON_DATA ?= ../shared/data
export SNRECON_DATA

.PHONY: setup demo test lint bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,mrd,nifti,train]'
	@touch $@

demo: setup
	$(BIN)/snrecon demo --out demo

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv demo build dist src/*.egg-info
