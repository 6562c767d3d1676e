# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
CSRC := $(shell find csrc -type f)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test build lint format docs bench cuda-check gpu-check sanitize sanitize-native sanitize-ops clean

demo: $(VENV)/.installed
	$(RUN)/python -m sparseq run digits --out out $(ARGS)

# a file's tests share a process, see tests/conftest.py; ARGS="-n 0 ..." runs all of them in this one
test: $(VENV)/.installed
	$(RUN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# incremental rebuild of the extension while working on csrc/
build: $(VENV)/.torch
	$(RUN)/python setup.py -q build_ext --inplace
	test ! -e $(VENV)/.installed || touch $(VENV)/.installed

lint: $(VENV)/.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(CSRC))

format: $(VENV)/.installed
	$(RUN)/ruff format .
	$(RUN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(CSRC))

# the site, in build/site; a broken link or a missing reference is an error
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict

bench: $(VENV)/.installed
	$(RUN)/python benchmarks/run.py $(ARGS)

cuda-check: $(VENV)/.installed
	$(RUN)/python tools/cuda_check.py

# For a machine with a GPU: every op against the CPU's numbers, then its speed beside torch's and the roof.
gpu-check: $(VENV)/.installed
	$(RUN)/python -m pytest -m gpu tests/gpu
	$(RUN)/python benchmarks/gpu.py $(ARGS)

# AddressSanitizer and UBSan: every ISA's products through SIMDe, then the extension, built apart, under the op tests.
# Python does not load the sanitizer's runtime, nor the C++ library that it intercepts, by itself: hence LD_PRELOAD.
SANITIZED := build/sanitize/lib
sanitize: sanitize-native sanitize-ops

sanitize-native: $(VENV)/.installed
	SPARSEQ_SANITIZE=1 $(RUN)/pytest tests/native

sanitize-ops: $(VENV)/.installed
	SPARSEQ_SANITIZE=1 SPARSEQ_CUDA=0 $(RUN)/python setup.py -q build --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONPATH=$(SANITIZED) $(RUN)/pytest -p no:cacheprovider tests/ops tests/sparse $(ARGS)

clean:
	rm -rf build out *.egg-info sparseq/*.so
	rm -f $(VENV)/.installed

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install torch==2.14.1 torchvision==0.29.1 "setuptools>=77" "pybind11>=2.13" ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	$(RUN)/pip install --no-build-isolation -e ".[dev]"
	touch $@
