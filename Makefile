# Everything runs in .venv, which is made on first use and remade when pyproject.toml changes.
# All paths are relative, so the checkout may live anywhere, also under a path with spaces.

PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)
RUN_DIR := runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench bench-peers clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

install: $(STAMP) ## make .venv with the library and its development tools

$(STAMP):
	@test -x $(PY) || "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "expected Python 3.11 or 3.12, got $$("$(PYTHON)" --version 2>&1); do run make with PYTHON=python3.11" >&2; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv .venv || { rm -rf .venv; \
	  echo "expected a Python that can make virtual environments, got the error above; do install its venv module" >&2; exit 1; }
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e ".[dev]"
	@rm -f .venv/.installed-* && touch $@

demo: $(STAMP) ## train lorenz63, then judge it: a report in minutes
	$(PY) -m train lorenz63 --run-dir $(RUN_DIR) --overwrite
	@status=0; echo "$(PY) -m eval $(RUN_DIR)"; $(PY) -m eval $(RUN_DIR) || status=$$?; \
	find $(RUN_DIR) -name report.html -exec echo "report: {}" \; ; exit $$status

# whole files to each process: their tests share what is compiled
test: $(STAMP) ## the quick tests
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy vardax_flax train eval

bench: $(STAMP) ## measure speed and memory
	$(PY) -m eval.bench

bench-peers: $(STAMP) ## one environment for each package to compare with, then the table
	@for list in eval/bench/peers/*.txt; do \
	  environment=.venv-peers/$$(basename "$$list" .txt); \
	  test -e "$$environment/.installed" || { "$(PYTHON)" -m venv "$$environment" && "$$environment/bin/python" -m pip install --quiet \
	    -r "$$list" && touch "$$environment/.installed"; } || echo "warning: $$list could not be installed; its row will say so" >&2; done
	$(PY) -m eval.bench peers

clean: ## remove what the other targets made, except runs/
	rm -rf .venv .venv-peers .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
