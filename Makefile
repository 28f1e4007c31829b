# `make demo` does the main job on real input; `make test` runs everything that checks.
# The first of them to run installs into .venv; no root is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU build is enough, and what is tested. `make TORCH=torch` takes the newest instead.
TORCH ?= torch==2.13.0

.PHONY: help demo test lint fuzz ext sanitize cross clean
help: ## Show this list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# Editable: the sources are used as they stand; only C++ changes need building again.
$(VENV)/installed: $(VENV)/bin/pip pyproject.toml CMakeLists.txt $(wildcard src/cpp/* src/cpp/kernels/*)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable .
	@touch $@

# Not after `installed`, which would compile the kernels a second time.
$(VENV)/installed-test: $(VENV)/bin/pip pyproject.toml CMakeLists.txt $(wildcard src/cpp/* src/cpp/kernels/*)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test]"
	@touch $(VENV)/installed $@

demo: $(VENV)/installed ## Deep Compression on a trained network: prune, retrain, share, fine-tune, code, load, evaluate.
	$(BIN)/python examples/demo.py

test: $(VENV)/installed-test ## Everything that checks: format, lint, types, imports, tests, docs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto tests
	@# The blocks of one document go on from one another: one process runs them all.
	OMP_NUM_THREADS=1 $(BIN)/pytest README.md docs src

SECONDS ?= 60
fuzz: $(VENV)/installed-test ## Fuzz the loader: make fuzz SECONDS=600.
	$(BIN)/pip install --quiet --editable ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_loader.py -max_total_time=$(SECONDS)

ext: ## Build the C++ extension in place, for work on its sources with PYTHONPATH=src.
	cmake -S . -B build/ext -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)')
	cmake --build build/ext -j2
	install -m 755 build/ext/_cpp*.so src/lilliput/

# Address and undefined-behaviour sanitizers over the kernels, with the random shapes of their tests.
sanitize: ## Build the extension with sanitizers, apart, and run the kernels' tests on it (gcc; PYTHON with nanobind and pytest).
	cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Release -DLILLIPUT_SANITIZE=ON -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)')
	cmake --build build/sanitize -j2
	mkdir -p build/sanitize/src
	cp -r src/lilliput build/sanitize/src/
	rm -f build/sanitize/src/lilliput/_cpp*.so
	cp build/sanitize/_cpp*.so build/sanitize/src/lilliput/
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize/src OMP_NUM_THREADS=1 \
	$(PYTHON) -m pytest -q -p no:xdist -p no:cacheprovider tests/kernels tests/run/test_programs.py -k "not export_and_compile and not opcheck"

cross: ## Compile the kernels for aarch64, and test them under qemu-user where it is installed (g++-aarch64-linux-gnu or ziglang).
	$(PYTHON) tests/kernels/cross/build.py

clean: ## Remove what was built and installed.
	rm -rf build $(VENV) src/lilliput/_cpp*.so
