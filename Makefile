# make setup   a working .venv with the package built in place
# make test    setup, then all tests
# make bench   setup, check every op against the reference, benchmark, tables and plots
# make lint    formatting and static checks
# make clean   removes what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test bench lint clean help

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

setup:
	@$(PYTHON) tools/setup_venv.py $(VENV)

test: setup
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m dla_kernels verify
	$(BIN)/python -m dla_kernels bench

lint: setup
	$(BIN)/python -m pip install -q --group lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

clean:
	rm -rf $(VENV) build dist *.egg-info dla_kernels/*.so
