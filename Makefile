# GNU make 3.81 or newer. `make` alone lists the targets.
VENV ?= .venv
PYTHON ?= python3

BIN := $(VENV)/bin
READY := $(VENV)/.ood-book-ready

.PHONY: help env book lint check test clean
.DELETE_ON_ERROR:

help:
	@echo "make book    run every notebook and build the pages (_build/html/index.html)"
	@echo "make check   lint, types, layers and every test that starts no process: six minutes"
	@echo "make test    check the code, run every notebook in its quick profile, build those pages"
	@echo "make env     only the environment, in $(VENV) (VENV=..., PYTHON=... choose others)"
	@echo "make clean   remove what was built; keeps the environment and the data"

env: $(READY)

# Written last, so that an interrupted installation is taken up again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The book needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@echo "Installing the environment in $(VENV): a few minutes and 7 GB the first time ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

# A notebook that fails (1) leaves the others their pages; refused input (2) and Ctrl-C (130) end here.
book: $(READY)
	@$(BIN)/ood-book run --profile default; ran=$$?; \
	  test $$ran -le 1 || exit $$ran; \
	  $(BIN)/ood-book build --profile default || exit $$?; \
	  exit $$ran

# One thread for each test process: two that want every core are slower than one after the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/ood-book sync --check

check: lint
	$(PYTEST) -m "not processes"

# The tests come last, so that their closing line ends the output.
test: lint
	$(BIN)/ood-book run --profile quick
	$(BIN)/ood-book build --profile quick
	$(PYTEST)

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find ood_lib book tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
