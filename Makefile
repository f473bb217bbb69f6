# Needs make and Python 3.11 or newer; everything else goes into .venv.
# `make PYTHON=python3.13 install` chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests call with wrong types on purpose; those about types run mypy themselves (tests/test_typing.py).
PACKAGES := maas examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help install demo test test-tensorflow check lint types docs bench bench-peers clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1\t/' | expand -t 22

install: $(STAMP)  ## make .venv with everything for development

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maas needs Python 3.11 or newer; try: make PYTHON=python3.11 $@")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), which takes about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
# Compiling what came takes 90 s of one processor, and pip uses one. Some packages ship files of
# other Pythons, which nobody imports.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

demo: $(STAMP)  ## see one model called here and over the wire
	$(BIN)/python examples/demo.py

# Tests are dealt out in long runs, so that a file's fixtures are made once or twice, and who has
# done his share takes half of what another has left. OpenBLAS's threads spin while they wait for
# each other, which with a process for each processor they always do: a fit took 20 s, and takes 7.
test: $(STAMP)  ## run the quick tests, on every processor
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# TensorFlow is 1.4 GB and wants a process of its own; the rest it finds in $(VENV).
TF_VENV := .venv-tensorflow
TF_STAMP := $(TF_VENV)/.installed
SITE := 'import site; print(site.getsitepackages()[0])'

$(TF_STAMP): $(STAMP)
	$(PYTHON) -m venv --without-pip $(TF_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(SITE))')" > "$$($(TF_VENV)/bin/python -c $(SITE))/development.pth"
	@echo "installing TensorFlow into $(TF_VENV), which takes about a minute"
	$(BIN)/python -m pip --python $(TF_VENV)/bin/python install --quiet --disable-pip-version-check -c constraints.txt tensorflow-cpu
	@touch $@

test-tensorflow: $(TF_STAMP)  ## run the tests of Keras once more, on TensorFlow; not part of check
	KERAS_BACKEND=tensorflow MAAS_REQUIRE=keras,tensorflow $(TF_VENV)/bin/python -m pytest tests/keras
	KERAS_BACKEND=tensorflow MAAS_REQUIRE=keras,tensorflow $(TF_VENV)/bin/python -m pytest tests/test_docs.py -k seed_tensorflow

# Each of the first three uses one processor.
check: $(STAMP)  ## all that CI does
	$(MAKE) --jobs 2 lint types docs
	$(MAKE) test

lint: $(STAMP)  ## style: ruff's rules and its formatter
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy $(PACKAGES)

docs: $(STAMP)  ## build docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

bench: $(STAMP)  ## run every benchmark, one after the other
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP)  ## compare with other servers, each in an environment of its own
	$(BIN)/python -m benchmarks.peers --keep

clean:  ## remove .venv and what was built
	rm -rf $(VENV) $(TF_VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
