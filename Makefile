# Two commands do everything: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := examples/claims_desk/task.yaml
SECOND := examples/claim_details/task.yaml
# Kept, since compiling PyTorch and MLflow anew takes each process of the suite ten seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test lint tests format hooks docs serve tree clean

help:                    ## list these commands
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  +##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

# Side by side, each on half of the cores: training does not use two cores twice as well as one.
demo: $(VENV)/.demo      ## run the whole path for labels and, beside it, for JSON; ends with two verdicts, report.html, details.html
	@export OMP_NUM_THREADS=$$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )); \
	$(BIN)/smallfirst run $(SECOND) --report details.html $(ARGS) >details.txt 2>&1 & json=$$!; \
	trap 'kill $$json' INT TERM; \
	$(BIN)/smallfirst run $(DEMO) --report report.html $(ARGS); failed=$$?; \
	echo "waiting for the second part, $(SECOND)" >&2; \
	wait $$json || failed=$$?; cat details.txt; rm details.txt; exit $$failed

test: lint tests         ## run everything that must pass: style, types, import contract, tests

lint: $(VENV)/.dev       ## check style (ruff), types (mypy) and the import contract (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/.dev      ## run the tests alone; ARGS="tests/routing -k router" selects some
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

format: $(VENV)/.dev     ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/.dev      ## check style before every commit (pre-commit)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pre-commit>=4"
	$(BIN)/pre-commit install

docs: $(VENV)/.dev       ## rewrite the reference pages and build the documentation site into site/
	$(BIN)/python tools/reference.py
	$(BIN)/zensical build --strict

serve: $(VENV)/.demo     ## serve what the demo promoted
	$(BIN)/smallfirst serve $(DEMO) --replay-large

tree: $(VENV)/.dev       ## rewrite the package tree in docs/design/layout.md
	$(BIN)/python tools/layout_tree.py

# --no-compile: Python compiles what it imports, pip would compile all of it.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "smallfirst needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[train,serve,llama]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]"
	touch $@

clean:                   ## remove the environment and all state
	rm -rf $(VENV) .smallfirst report.html details.html details.txt
