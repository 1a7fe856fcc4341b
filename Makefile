# make demo | test | test-slow | results | bench | lint | clean
# PYTHON=python3.12 chooses the interpreter; DATA_DIR=DIR says where Omniglot's archives lie; JOBS=8
# runs the tests in eight processes.

PYTHON ?= python3
DATA_DIR ?=
PYTEST_ARGS ?=
JOBS ?= 2
ONLY ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-input
# A file's tests share what they trained and compiled, so files, not tests, are dealt to processes.
PYTEST := $(RUN) -m pytest -n $(JOBS) --dist=loadfile
INSTALLED_BY := setup.py pyproject.toml

.PHONY: demo test test-slow results bench lint clean help
.DEFAULT_GOAL := help

help:
	@echo 'make demo       install into $(VENV), run the digits experiment, print where its report is'
	@echo 'make test       install, then run the tests (not the slow ones)'
	@echo 'make test-slow  install all extras, then run every test'
	@echo 'make results    run the committed experiments, rewrite experiments/results/ (DATA_DIR=DIR)'
	@echo 'make bench      install PyTorch and POT, time our code against them (ONLY=sinkhorn,... some)'
	@echo 'make lint       check the style (installs ruff)'
	@echo 'make clean      remove $(VENV), runs/ and caches'

demo: $(VENV)/core.stamp
	@echo '==> digits with 20 % wrong labels: original, retrained and unlearned models'
	$(RUN) -m experiments.run --config=experiments/configs/digits.py --workdir=runs/demo --overwrite
	@echo '==> report: runs/demo/report.html (and runs/demo/report.md)'

test: $(VENV)/test.stamp
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/all.stamp
	$(PYTEST) -m 'slow or not slow' $(PYTEST_ARGS)

results: $(VENV)/results.stamp
	$(RUN) -m experiments.make_results --data_dir='$(DATA_DIR)'

bench: $(VENV)/bench.stamp
	$(RUN) -m experiments.benchmarks.run --only='$(ONLY)'

lint: $(VENV)/core.stamp
	$(PIP) ruff
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: unlearn_jax needs Python 3.11 or newer, $(PYTHON) is' \
	    "$$($(PYTHON) --version 2>&1); try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo '==> creating $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/core.stamp: $(INSTALLED_BY) | $(VENV)/bin/python
	@echo '==> installing unlearn_jax and its dependencies (one to three minutes the first time)'
	@$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(INSTALLED_BY) | $(VENV)/bin/python
	@echo '==> installing unlearn_jax with what the tests need (one to three minutes the first time)'
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/core.stamp

$(VENV)/results.stamp: $(INSTALLED_BY) | $(VENV)/bin/python
	@echo '==> installing unlearn_jax with what the experiments need (one to three minutes the first time)'
	@$(PIP) -e '.[audit,clip,openmoji,speech]'
	@touch $@ $(VENV)/core.stamp

$(VENV)/bench.stamp: $(INSTALLED_BY) | $(VENV)/bin/python
	@echo '==> installing unlearn_jax with PyTorch and POT (several minutes the first time)'
	@$(PIP) -e '.[bench]'
	@touch $@ $(VENV)/core.stamp

$(VENV)/all.stamp: $(INSTALLED_BY) | $(VENV)/bin/python
	@echo '==> installing unlearn_jax with all extras, PyTorch included (several minutes the first time)'
	@$(PIP) -e '.[all]'
	@touch $@ $(VENV)/bench.stamp $(VENV)/results.stamp $(VENV)/test.stamp $(VENV)/core.stamp
