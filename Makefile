# `make demo` does the main job on real input; `make test` runs everything that checks.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: ext
ext: ## Build the C++ extension in place (for work on the sources).
	$(PYTHON) -m nanobind --cmake_dir >/dev/null
	cmake -S . -B build/ext -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)')
	cmake --build build/ext -j2
	cp build/ext/_cpp*.so src/lilliput/
