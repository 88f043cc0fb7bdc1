# PYTHON: the interpreter that the virtual environment is made from.
# VENV:   its folder; empty means "use PYTHON as it is" (a machine that already has torch).
# TORCH:  the torch to install into a new environment.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0

PY     := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
BIN    := $(if $(VENV),$(VENV)/bin/)
STAMP  := $(if $(VENV),$(VENV)/installed,build/installed)
NATIVE := setup.py pyproject.toml $(shell find csrc -type f -name '*.[ch]*')

.PHONY: venv demo test lint format clean

venv: $(STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The extension is rebuilt whenever a native source changes; Python sources are used in place.
$(STAMP): $(NATIVE) | $(if $(VENV),$(VENV)/bin/python)
	$(if $(VENV),$(PY) -m pip install --quiet $(TORCH) "setuptools>=70.1" ninja pybind11)
	$(PY) -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@mkdir -p $(@D) && touch $@

demo: venv
	$(PY) -m benchmarks.language_model

test: venv
	$(PY) -m pytest -n auto

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(BIN)clang-format --dry-run --Werror $(shell find csrc -type f -name '*.[ch]*')

format: venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(BIN)clang-format -i $(shell find csrc -type f -name '*.[ch]*')

clean:
	rm -rf build dist *.egg-info fusedlstm/*.so .venv
