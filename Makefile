# make repro   environment, then the whole pipeline at the scale of this machine, ending with the table of seeds
# make test    environment, then lint, types and every test
# make venv    the environment alone

PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv repro test lint types unit clean
.DELETE_ON_ERROR:

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else f"got Python {sys.version.split()[0]}, expected 3.11 to 3.13; run make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev]'
	touch $@

repro: venv
	$(BIN)/dvc repro
	@$(BIN)/python -m audit show

test: lint types unit

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

unit: venv
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv runs
