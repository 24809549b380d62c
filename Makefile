# Two commands: `make quickstart` shows the product, `make test` runs all tests. Both set up .venv once.
PYTHON ?= python3
VENV ?= .venv
TEST_ARGS ?=

BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py sgc_distiller/_version.py

.PHONY: help quickstart test install dev clean

help:
	@echo "make quickstart   train a small GAN on real digits, compress it, write report.html"
	@echo "make test         run all tests (TEST_ARGS='-k masks' passes arguments to pytest)"
	@echo "make clean        remove $(VENV) and build products"

quickstart: install
	$(BIN)/sgc quickstart

test: dev
	$(BIN)/python -m pytest $(TEST_ARGS)

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Expected Python 3.10 or later, got $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/pyvenv.cfg $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-wheel build dist *.egg-info
