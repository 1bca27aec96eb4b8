# Two commands: `make demo` and `make test`. Both make .venv and install what they need; `make install` does only that.
# `make validate` (root) runs the campaign of emulated clusters; it takes up where it was stopped.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test validate lint types layers unit format clean

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m planner.demo

test: lint types layers unit

validate: $(STAMP)
	@$(BIN)/python -m benchmarks.validate

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "attnplan needs Python 3.11 or newer as '$(PYTHON)'; set PYTHON=..."; exit 2; }
	@echo "== making $(VENV) (torch CPU build; a minute or two the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
