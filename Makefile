# make setup   a working .venv with the package built in place
# make test    setup, then the fast tier of the tests; K=gap only those of that name, SEED=... a run again
# make test-all  setup, then all tests
# make train   setup, then train a network on handwritten digits: runs/digits/curves.png; TRAIN_OPTIONS="--epochs 3"
# make bench   setup, check every op against the reference, benchmark, tables and plots
# make docs    setup, then the documentation as a site, build/site/index.html; a warning is an error
# make soak    setup, then the ops under random inputs, threads, interrupts and low memory, for minutes
# make gpu     on a machine with a GPU: build, test, check and benchmark in under 9 minutes
# make dist    sdist and wheels, each tried in a fresh environment; DIST_OPTIONS="--kinds cpu --torch 2.13.0"
# make lint    formatting and static checks
# make clean   removes what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two workers where pytest-xdist is there; each test goes to the next free one, tests that share a program together.
WORKERS = $$($(BIN)/python -c "import xdist; print('-n 2 --dist loadgroup --no-loadscope-reorder')" 2>/dev/null)
PYTEST = $(BIN)/python -m pytest $(WORKERS) $(if $(SEED),--tier-seed=$(SEED)) $(if $(K),-k "$(K)")

.PHONY: setup test test-rest test-all train bench docs soak gpu dist lint clean help

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

setup:
	@$(PYTHON) tools/setup_venv.py $(VENV)

test: setup
	$(PYTEST) --tier=fast

test-rest: setup # what test-all has beside test, for CI
	$(PYTEST) --tier=rest

test-all: setup
	$(PYTEST) --tier=full

train: setup # another time it goes on, or says what it came to
	$(BIN)/python -m recipes.train --recipe digits --data digits --out runs/digits --resume auto $(TRAIN_OPTIONS)

bench: setup
	$(BIN)/python -m dla_kernels verify
	$(BIN)/python -m dla_kernels bench

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

soak: setup
	$(BIN)/python -m tests.soak $(SOAK_OPTIONS)

gpu:
	@$(PYTHON) tools/gpu.py $(GPU_OPTIONS)

dist: setup
	$(BIN)/python -m pip install -q "pip>=25.1" # the first that knows --group
	$(BIN)/python -m pip install -q --group dist
	$(BIN)/python tools/dist.py $(DIST_OPTIONS)

lint: setup
	$(BIN)/python -m pip install -q "pip>=25.1" # the first that knows --group
	$(BIN)/python -m pip install -q --group lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

clean:
	rm -rf $(VENV) build dist *.egg-info dla_kernels/*.so
