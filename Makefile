# make demo: train SOLID on real data and recommend.  make test: everything that must hold.
PYTHON ?= python3
DATASET ?= movielens-100k
OUT ?= runs/demo
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt
NATIVE := CMakeLists.txt $(wildcard csrc/*.cpp csrc/*/*)

.PHONY: demo test bench lint

demo: .venv/native $(if $(filter movielens-100k,$(DATASET)),.venv/recbole)
	$(BIN)/python -m solid_ext.cli train --dataset $(DATASET) --out $(OUT) --overwrite --config bench/demo.yaml

test: .venv/test
	$(BIN)/python -m pytest

# Peers with an OpenMP of their own take part from another Python: FAISS=PYTHON (faiss-cpu), VQ=FOLDER (vector-quantize-pytorch).
bench: .venv/test
	$(BIN)/python bench/bench_nearest_code.py --json $(FAISS:%=--faiss-python %) $(VQ:%=--quantize-path %)
	$(BIN)/python bench/bench_dynamic_mlp.py --json
	$(BIN)/python bench/bench_gru.py --json
	$(BIN)/python bench/bench_train_step.py --json

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cuh %.cu,$(NATIVE)) $(wildcard python_tests/cuda_host/*)

# The native module is installed once per change of its sources; Python is read from the checkout.
.venv/native: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) .
	touch $@

# MovieLens-100k comes as package data.
.venv/recbole: .venv/native
	$(PIP) --no-deps recbole==1.2.1
	touch $@

.venv/test: .venv/native python_tests/requirements.txt
	$(PIP) -r python_tests/requirements.txt
	touch $@

.venv/lint: .venv/test
	$(PIP) ruff mypy clang-format
	touch $@
