# Everything runs in .venv, which the first call makes and fills: it needs Python >= 3.10, make and a C++ compiler.
#     make test PYTHON=python3.12         another interpreter for a new .venv
#     make test ARGS="-m slow tests/x.py" arguments for pytest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(VENV)/.torch
READY := $(VENV)/.ready
NATIVE := $(shell find csrc -type f)

DOCS := build/docs

.PHONY: help build test lint demo bench gpu picture docs dist clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

build: $(READY)  ## the environment, with the package in it (editable) and its extension compiled

test: $(READY)  ## the tests, but for the slow ones; a file to a core
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: $(READY)  ## style and types of Python, style of C++
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

demo: $(READY)  ## certify the embedded images with the embedded model
	$(BIN)/smoothfast demo

bench: $(READY)  ## the measurements that need no data
	for what in noise tally replica_sum attack_step weights fused samples certify methods flights threads processes memory start scaling attack strength; do \
		$(BIN)/smoothfast bench $$what || exit 1; done

gpu: $(READY)  ## on a GPU: its tests, and rows of its kernels and of certification
	$(BIN)/pytest -q -m gpu tests/gpu
	for what in noise tally fused certify; do \
		SMOOTHFAST_BENCH_ON=cuda $(BIN)/smoothfast bench $$what --out benchmarks/results/$$what.csv || exit 1; done

RECORDS := $(addprefix benchmarks/results/demo-, fixed.tsv integers-grid.tsv sequential-0.25.tsv)
picture: $(READY)  ## the pictures of README and docs/soundness.md, from recorded runs
	$(BIN)/smoothfast analyze $(RECORDS) --plot docs/certified-accuracy.png --spread docs/spread.png

docs: $(DOCS)/.ready  ## the documentation as a site: build/site
	PYTHONPATH=. $(DOCS)/bin/python docs/site/pages.py build/pages
	$(DOCS)/bin/zensical build --strict

# A wheel is for the minor release of torch that it was compiled against: C++ promises no more. Of libraries it brings
# none: torch's are torch's, with its OpenMP, and two OpenMP runtimes in a process would each have threads of their own.
dist: $(READY)  ## sdist, and a wheel for CPUs under Linux that needs no compiler
	rm -rf build/dist dist
	$(BIN)/python -m build --sdist --no-isolation
	SMOOTHFAST_NO_CUDA=1 $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/dist dist/*.tar.gz
	$(BIN)/python -m wheel unpack --dest build/dist build/dist/*.whl
	release=$$($(BIN)/python -c "import torch; print(*torch.__version__.split('.')[:2], sep='.')") && \
		sed -i "s/^Requires-Dist: torch>=.*/Requires-Dist: torch==$$release.*/" build/dist/smoothfast-*/*.dist-info/METADATA
	$(BIN)/python -m wheel pack --dest build/dist build/dist/smoothfast-*/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --exclude "libtorch*" --exclude "libc10*" \
		--exclude libgomp.so.1 --wheel-dir dist build/dist/*.whl

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info smoothfast/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis $(READY)

$(TORCH):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python >= 3.10, please: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip setuptools ninja torch torchvision
	touch $@

$(DOCS)/.ready:  # an environment of its own: torchattacks asks for a requests of 2020
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install zensical "mkdocstrings[python]" typer rich numpy
	touch $@

$(READY): $(TORCH) $(NATIVE) setup.py pyproject.toml
	$(BIN)/python -m pip install --no-build-isolation -e ".[dev]"
	touch $@
