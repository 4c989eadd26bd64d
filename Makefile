# Two commands do everything on a machine with Python and make:
#   make search   a first search on the Python standard library's own text
#   make test     ruff, mypy and the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

# Torch is optional: its default build brings gigabytes of CUDA, so only a CPU build is installed, if
# pip is configured to find one. Tests that need torch are skipped without it.
$(VENV)/.testable: $(VENV)/.installed
	$(PIP) '.[test,ray,codegen]'
	if $(BIN)/python -m pip index versions torch 2>/dev/null | \
		grep -q "$$(sed -n 's/^torch==//p' constraints.txt)+cpu"; then $(PIP) '.[torch]'; fi
	touch $@

.PHONY: install search test slow lint clean
install: $(VENV)/.testable

search: $(VENV)/.installed
	$(BIN)/nanoevolve search --config=configs/screen.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

clean:
	rm -rf $(VENV) *.egg-info build dist
