# kla: `make` alone prints the menu. Nothing here asks a question: every target runs without a terminal.
SHELL := /bin/bash
JOBS ?= $(shell nproc)
BUILD := build/release
CI_BUILD := build/ci

.PHONY: menu setup build cuda quickstart test sanitize tsan bench format lint clean

menu:
	@echo "make setup       install what is missing (Debian packages; needs root or sudo)"
	@echo "make build       build/release/kla, the program"
	@echo "make cuda        build/cuda/kla for NVIDIA GPUs, wherever the toolkit is; registers and spills of its kernels"
	@echo "make quickstart  from nothing to two trained models and a report, about 7 minutes on 2 cores"
	@echo "make test        build everything with warnings as errors and run all tests"
	@echo "make sanitize    the kernels' tests under AddressSanitizer and UBSan, CUDA kernels included"
	@echo "make tsan        the tests that start threads under ThreadSanitizer"
	@echo "make bench       speed of every op and of the training step on this machine"
	@echo "make format      clang-format all sources"
	@echo "make lint        check formatting and the size of lines, functions, files; TIDY=1: clang-tidy too"
	@echo "make clean       remove build/ (runs and data stay)"

setup:
	@tools/setup.sh

build: setup
	@echo "== building $(BUILD)/kla"
	@cmake --preset release -DKLA_TESTS=OFF
	@cmake --build $(BUILD) -j $(JOBS) --target kla

cuda: setup
	@echo "== building build/cuda/kla"
	@cmake --preset cuda $(if $(CUDA_ARCH),"-DKLA_CUDA_ARCH=$(CUDA_ARCH)")
	@cmake --build build/cuda -j $(JOBS)
	@tools/kernel_report.py build/cuda

quickstart: build
	@tools/quickstart.sh $(BUILD)/kla

test: setup
	@echo "== building everything into $(CI_BUILD), warnings are errors"
	@cmake --preset ci
	@cmake --build $(CI_BUILD) -j $(JOBS)
	@echo "== running the tests"
	@ctest --test-dir $(CI_BUILD) -j $(JOBS) --output-on-failure

sanitize: setup
	@echo "== building the kernels' tests with sanitizers into build/asan"
	@cmake --preset asan
	@cmake --build build/asan -j $(JOBS) --target test_simt test_kernels test_device
	@printf '%s\n' test_device\ 6\ {0..5} test_kernels\ 2\ {0,1} "test_simt 1 0" | xargs -P $(JOBS) -L 1 sh -c \
	  'GTEST_TOTAL_SHARDS=$$1 GTEST_SHARD_INDEX=$$2 build/asan/tests/$$0 --gtest_brief=1 || exit 255'

# oneDNN and the OpenMP below it are not instrumented; each of their calls stays on the thread that makes it.
tsan: setup
	@echo "== building the tests that start threads with ThreadSanitizer into build/tsan"
	@cmake --preset tsan
	@cmake --build build/tsan -j $(JOBS) --target $(addprefix test_,core data kernels model eval train distributed)
	@printf '%s\n' kernels model core data eval train "distributed Channel*:Communicator*:Rendezvous*:Optimizer*" | \
	  xargs -P $(JOBS) -L 1 sh -c 'build/tsan/tests/test_$$0 --gtest_brief=1 --gtest_filter="$${1:-*}" || exit 255'

bench: build
	@$(BUILD)/kla bench configs/bench/cpu.yaml

format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

lint:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror
	@python3 tools/check_style.py
ifdef TIDY
	@cmake --preset debug > /dev/null
	@git ls-files 'src/*.cpp' 'kernels/*.cpp' | xargs -P $(JOBS) -n 4 clang-tidy -p build/debug --quiet
endif

clean:
	@rm -rf build
