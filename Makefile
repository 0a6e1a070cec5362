# `make` tells what there is. Everything stays inside this directory (.venv, build/); only missing
# system packages are installed outside of it, as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps
C_SOURCES := $(wildcard csrc/*.c)
C_HEADERS := $(wildcard csrc/*.h)
C_FORMATTED := $(C_SOURCES) $(C_HEADERS) $(wildcard csrc/tests/*.c csrc/tests/*.h tools/*.c)
PYTHON_SOURCES := raidfs csrc tests tools setup.py
export PYTHON
# One more than processors: many tests wait now and then.
WORKERS := $(shell echo $$(($$(nproc) + 1)))
PREFIX ?= /usr/local
DESTDIR ?=
HELPERDIR ?= /sbin
PLACES = --prefix '$(PREFIX)' --destdir '$(DESTDIR)' --helper-directory '$(HELPERDIR)'

.PHONY: help build install uninstall man check lint test demo format sanitize bench clean

help:
	@echo "make build     compile and install into .venv; the commands are then in .venv/bin"
	@echo "make demo      see raidfs at work: a volume, a lost member, nothing lost"
	@echo "make check     formatting, lint, types, quick tests (under a minute)"
	@echo "make test      all tests, slow ones and sanitizers too (under ten minutes)"
	@echo "make bench     figures of the erasure kernels and of a mount"
	@echo "make format    put Python and C into the form that check wants"
	@echo "make sanitize  the C tests under the address and undefined-behaviour sanitizers"
	@echo "make man       the manual pages, in build/man"
	@echo "make install   as root: program, units of systemd, manual, completion (PREFIX, DESTDIR; see docs/INSTALL.md)"
	@echo "make uninstall takes that away again"
	@echo "make clean     remove what was built"

build: $(STAMPS)/native

$(STAMPS)/packages-%: tools/packages.sh
	@tools/packages.sh $*
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: pyproject.toml setup.py | $(STAMPS)/packages-build
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check 'setuptools>=77' wheel 'cffi>=1.16'
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@mkdir -p $(@D) && touch $@

$(STAMPS)/native: $(STAMPS)/venv csrc/ffi_build.py $(C_SOURCES) $(C_HEADERS)
	$(BIN)/python setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

# Copies: an installed raidfs goes on working while this checkout is changed, or gone.
install: build
	$(BIN)/python tools/install.py install $(PLACES)

uninstall: build
	$(BIN)/python tools/install.py uninstall $(PLACES)

man: build
	$(BIN)/python tools/manual.py build/man
	@echo "read it with: man -M build/man raidfs-ctl"

lint: build
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(C_FORMATTED)
	$(BIN)/mypy

check: lint $(STAMPS)/packages-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test: lint sanitize $(STAMPS)/packages-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

sanitize: build
	tools/sanitize.sh

demo: build
	@$(BIN)/python tools/demo.py

bench: build $(STAMPS)/packages-test
	for tool in tools/*_bench.py; do $(BIN)/python $$tool; done

format: build
	$(BIN)/ruff check -q --fix-only $(PYTHON_SOURCES)
	$(BIN)/ruff format -q $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(C_FORMATTED)

clean:
	rm -rf build *.egg-info raidfs/_native.c raidfs/_native*.so .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis $(VENV)
	find raidfs tests tools csrc -name __pycache__ -type d -prune -exec rm -rf {} +
