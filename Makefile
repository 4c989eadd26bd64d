# Two commands do everything on a machine with Python and make:
#   make search   a first search on the Python standard library's own text
#   make test     ruff and the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

$(VENV)/.testable: $(VENV)/.installed
	$(PIP) '.[test,ray,codegen]'
	touch $@

.PHONY: install search test slow lint clean
install: $(VENV)/.testable

search: $(VENV)/.installed
	$(BIN)/nanoevolve search --config=configs/screen.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

clean:
	rm -rf $(VENV) *.egg-info build dist
