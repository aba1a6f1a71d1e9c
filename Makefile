# Targets for people and for CI; `make` lists them.
.DEFAULT_GOAL := help
VENV := .venv
PYTEST := $(VENV)/bin/pytest
export PATH := /usr/local/go/bin:$(PATH)

.PHONY: help setup system containerd check test test-slow demo bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## make .venv with everything that development needs

$(VENV)/.ready: pyproject.toml uv.lock
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
	@$(VENV)/bin/uv sync --quiet --locked --compile-bytecode --all-extras --group dev
	@touch $@

system:  ## install the servers and tools that the tests talk to (Debian, as root)
	@sh .ci/system

containerd:  ## build containerd 2.x for test-slow: two minutes, once
	@sh tests/support/build-containerd

check: setup  ## lint, types, layers, lock file
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/uv lock --check --quiet

test: setup system  ## all tests, against real servers
	$(PYTEST) -q -n 2 -m 'not slow'

test-slow: setup system containerd  ## the tests that take minutes: kill -9 at many instants, large files, containerd 2.x
	$(PYTEST) -q -m slow

demo: setup  ## see it work: a real model, packed, pushed, pulled, changed
	@bash demo/run

bench: setup system  ## compare with curl, skopeo and oras-py; writes bench/results
	$(VENV)/bin/python -m bench.run
	$(VENV)/bin/python -m bench.eviction

clean:  ## remove what the other targets made
	rm -rf $(VENV) .cache dist bench/.data .mypy_cache .ruff_cache .pytest_cache .hypothesis
