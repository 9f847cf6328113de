# `make search` and `make test` each prepare .venv by themselves on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One process a core; the tests of a file stay together, as they share what they launch.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile

.PHONY: search test test-all check format clean

search: $(INSTALLED)  ## search the shipped space: three to five minutes on two CPU cores
	$(BIN)/mvsearch launch search_spaces/stagewise.yaml

test: $(INSTALLED)  ## the fast tests
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(INSTALLED)  ## the slow tests too, which have the machine to themselves: they kill, wait and look at clocks
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made anew when what is to be installed changes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
