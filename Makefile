# Two commands do everything: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := examples/claims_desk/task.yaml

.PHONY: demo test check serve clean

demo: $(VENV)/.demo      ## the whole path on a real small model, ends with a verdict and report.html
	@$(BIN)/smallfirst run $(DEMO) --report report.html $(ARGS)

test: $(VENV)/.dev       ## style, types, import contract, tests
	$(BIN)/ruff check smallfirst tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile

serve: $(VENV)/.demo     ## serve what the demo promoted
	$(BIN)/smallfirst serve $(DEMO) --replay-large

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "smallfirst needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,llama]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,llama,dev]"
	touch $@

clean:                   ## remove the environment and all state
	rm -rf $(VENV) .smallfirst report.html
