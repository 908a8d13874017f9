# make run ARGS="env=digits"    one run, in an environment made on the first call
# make test                     style, types and the tests, in the same environment
# make test-slow                the tests that take long

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Pyright comes whole from the package index; without this it asks the network whether it is the newest.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: run test test-slow

run: $(INSTALLED)
	$(BIN)/python main.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow --timeout 3600

# Written last: an install that was cut short, or a new lock file, starts from an empty environment.
$(INSTALLED): requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
		{ echo 'Luban needs Python 3.11, found $(or $(PYTHON),none); name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --use-pep517 -r requirements.lock
	@touch $@
