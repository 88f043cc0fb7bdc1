# PYTHON:  the interpreter that the virtual environment is made from.
# VENV:    its folder; empty means "use PYTHON as it is" (a machine that already has torch).
# TORCH:   the torch to install into a new environment.
# RESULTS: where `make gpu` writes its records.
# BUDGET:  seconds that `make gpu-agenda` may take. OUT: where it puts its archive, summary and log.
# CARD:    the folder of results that `make gpu-agenda-dry` lists; empty means "each that there is".
# ARCHIVE: what `make gpu-collect` unpacks; FORCE=1 takes it though it does not belong to this checkout.
# DIST:    where `make wheel` puts sdist and wheel.
# TORCHES: what `make wheel-check` runs the wheel with.
# CASES:   how many random calls `make fuzz` makes.
PYTHON  ?= python3
VENV    ?= .venv
TORCH   ?= torch==2.13.0
RESULTS ?= benchmarks/results
BUDGET  ?= 780
OUT     ?= build/agenda
CARD    ?=
ARCHIVE ?= $(OUT)/records.tar.gz
FORCE   ?=
DIST    ?= dist
TORCHES ?= 2.11.0 2.13.0 2.14.1
CASES   ?= 5000

PY     := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
BIN    := $(if $(VENV),$(VENV)/bin/)
PIP    := flock Makefile $(PY) -m pip --quiet
STAMP  := $(if $(VENV),$(VENV),build)/installed
NATIVE := setup.py pyproject.toml $(shell find csrc -type f ! -name '*.md')
FORMAT := $(shell find csrc tests benchmarks/micro -type f -regex '.*\.\(h\|inl\|cpp\|cu\|cuh\)')

# Libraries that come with torch, OpenMP's among them. A wheel with a copy would bring a second one into the process.
FROM_TORCH := 'libc10*.so' 'libtorch*.so' libgomp.so.1 'libcudart.so.*'

# AddressSanitizer must be in the process before Python is; Python's own allocations are never freed at its end. The
# package of build/asan is found before the one here, even by python -m (PYTHONSAFEPATH: Python 3.11 or later).
ASAN    = FUSEDLSTM_ASAN=1 ASAN_OPTIONS=detect_leaks=0 PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/build/asan/lib:$(CURDIR)" \
          LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)"
GPU     = $(PY) -m tests.gpu --results $(RESULTS) --commit "$$(git describe --always --abbrev=40 --dirty 2>/dev/null || echo unknown)"
AGENDA  = $(PY) -m tests.agenda

.PHONY: venv demo bench test models fuzz test-asan asan-build test-asan-cpu test-asan-emulated lint format cuda-check wheel wheel-check gpu gpu-build gpu-test gpu-probes gpu-sanitize gpu-bench \
        gpu-agenda gpu-agenda-dry gpu-collect clean

# What an interested reader needs: torch, the package and the demo's packages.
venv: $(STAMP)-demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package, built anew whenever a native source changes; Python sources are used in place.
$(STAMP): $(NATIVE) | $(if $(VENV),$(VENV)/bin/python)
	$(if $(VENV),$(PIP) install $(TORCH) "setuptools>=70.1" ninja pybind11)
	$(PIP) install --no-build-isolation --editable .
	@mkdir -p $(@D) && touch $@

# The packages of one extra of pyproject.toml: a target installs what it needs and no more. Under make -j, flock lets one
# pip run at a time.
$(STAMP)-%: pyproject.toml | $(STAMP)
	$(PIP) install "fusedlstm[$*]"
	@touch $@

demo: venv
	$(PY) -m benchmarks.language_model

# About eight minutes on two cores; rows, tables, figures, and the README's sections.
bench: $(STAMP)-bench
	$(PY) -m benchmarks run
	$(PY) -m benchmarks plot
	$(PY) -m benchmarks report

test: $(STAMP)-test
	$(PY) -m pytest -n auto

# Packages that come without their dependencies, most of which their models do not use. Those of fastai, easyocr and timm
# include torchvision, of which the index has a build for CUDA only; those of joeynmt an old protobuf.
MODELS_ALONE := fastai easyocr espnet joeynmt kokoro neuralhydrology pfrl rsl-rl-lib timm

# The packages of tests/models, which skip without them: `make models test` runs the whole suite.
models: $(STAMP)-models
	$(PIP) install --no-deps $(MODELS_ALONE)

# Random calls on every device and instruction set there is; the suite runs some hundred others.
# It may be interrupted at any time.
fuzz: $(STAMP)-test
	$(PY) -m tests.fuzz --first 100000 --cases $(CASES)

# The CPU layer under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set, and the CUDA layer on the
# emulator under AddressSanitizer. A report ends the process, so it must not be captured.
test-asan: test-asan-cpu test-asan-emulated

asan-build: $(STAMP)-test
	FUSEDLSTM_ASAN=1 FUSEDLSTM_CUDA=0 $(PY) setup.py -q build --build-base build/asan --build-lib build/asan/lib

test-asan-cpu: asan-build
	$(ASAN) $(PY) -m pytest -n auto --capture=no -k "cpu and not emulated or test_instruction_sets" tests/test_ops.py \
		tests/test_gradients.py tests/test_resets.py tests/test_recompute.py tests/test_lengths_and_states.py \
		tests/test_instruction_sets.py
	$(ASAN) $(PY) -m tests.fuzz --cases 600 --jobs 2

test-asan-emulated: asan-build
	$(ASAN) $(PY) -m pytest -n auto --capture=no -k "emulated or persistent" tests/test_ops.py tests/test_gradients.py \
		tests/test_cuda.py tests/test_resets.py tests/test_recompute.py tests/test_persistent.py

lint: $(STAMP)-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(BIN)clang-format --dry-run --Werror $(FORMAT)

format: $(STAMP)-lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(BIN)clang-format -i $(FORMAT)

# Every CUDA source for every architecture; needs nvcc and no GPU. Of the missing packages only headers and programs are
# used. Where one cannot be installed, the gate says what it has not looked at.
cuda-check: $(STAMP)
	-$(PY) tests/compile_gate.py --missing | xargs --no-run-if-empty --max-args=1 $(PIP) install --no-deps
	$(PY) tests/compile_gate.py

# One wheel for every torch from 2.10 on. The patcher "none" fails where auditwheel would copy any other library.
wheel: $(STAMP)-wheel
	rm -f $(DIST)/fusedlstm-*
	$(PY) -m build --no-isolation --outdir $(DIST)
	$(PY) -m auditwheel repair --patcher none --strip $(FROM_TORCH:%=--exclude %) --wheel-dir $(DIST) $(DIST)/*-linux_*.whl
	rm $(DIST)/*-linux_*.whl

WHEEL_TESTS := import ops modules swap swap_subclasses tracers func compile export autocast torch_tools

# Tests of the CPU with the wheel installed beside each torch. 2.11 and 2.14 are CUDA builds, each 3 GB to fetch and 5 GB
# in build/.
wheel-check: wheel
	set -e; for torch in $(TORCHES); do \
		folder=build/torch-$$torch; \
		$(PYTHON) -m venv --clear $$folder; \
		$$folder/bin/python -m pip install --quiet torch==$$torch numpy pytest hypothesis $(DIST)/*-manylinux*.whl; \
		cp -r tests benchmarks pyproject.toml $$folder; \
		(cd $$folder && bin/python -m fusedlstm info && \
			bin/python -m pytest -q -k "not emulated" $(WHEEL_TESTS:%=tests/test_%.py)); \
	done

# On a machine with a GPU; its own torch and toolkit, nothing fetched: make gpu VENV= PYTHON=python3
# Two or three minutes on 16 cores: the parts are right or wrong, not fast or slow, and so run beside each other.
gpu: gpu-build
	$(MAKE) --keep-going --jobs=3 gpu-test gpu-probes gpu-sanitize; status=$$?; $(GPU) summary; exit $$status

# For the GPU here alone, and once for the same sources.
gpu-build:
	$(AGENDA) build

gpu-test:
	$(GPU) test

gpu-probes:
	$(GPU) probes

gpu-sanitize:
	$(GPU) sanitize

# The GPU targets' grid; QUICK=--quick for a few cases.
gpu-bench:
	$(PY) -m benchmarks run --device cuda --seconds 0.2 $(QUICK)
	$(PY) -m benchmarks plot --device cuda
	$(PY) -m benchmarks report --device cuda

# What a GPU is wanted for, in order of value, until the budget is spent; a second run goes on where the first ended.
gpu-agenda:
	$(AGENDA) run --budget $(BUDGET) --out $(OUT)

# The parts, their states and order; needs no GPU.
gpu-agenda-dry:
	$(AGENDA) dry --budget $(BUDGET) $(CARD:%=--gpu %)

# The records of a run on another machine, to where they belong.
gpu-collect:
	$(AGENDA) collect $(ARCHIVE) $(if $(filter 1,$(FORCE)),--force)

clean:
	rm -rf build dist *.egg-info fusedlstm/*.so .venv
