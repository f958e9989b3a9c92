# make demo   pictures from prompts, with the model in the box, in demo/
# make test   everything the tests need, and all of them
# make lint   ruff and mypy
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out demo

test: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -n 2 --durations=10

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.tests-installed
	$(BIN)/python benchmarks/compare.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "langevin needs Python 3.10 or newer; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing langevin and its pinned dependencies into $(VENV) (torch is large, so this takes a while)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.lint-installed: $(VENV)/.tests-installed
	$(PIP) --editable '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) demo
