# Commands for users and developers. `make demo` and `make test` each work on their own on a fresh machine with Python
# 3.10-3.12 and make: they first install into .venv what is missing.

# Which Python makes .venv: make install PYTHON=python3.12
PYTHON ?= python3
# Extra arguments for the command behind demo, test and bench: make test ARGS="-k countdown"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install vllm-cpu demo test test-real test-all mutants lint format lock bench bench-trl image manifests clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

install: ## make or update .venv from the locks (a moment when nothing changed)
	@$(PYTHON) app/install.py

vllm-cpu: ## the real vLLM 0.7.0 compiled for this machine's CPU, in .venv-vllm (Linux x86_64, Python 3.11, g++)
	@$(PYTHON) app/vllm_cpu.py

demo: ## train a tiny model on this machine's CPU and show that it learned
	@$(PYTHON) app/install.py --only train
	@.venv/bin/mini-r1 demo $(ARGS)

# One thread per process, because on a busy machine a second one costs more than it saves. One process more than cores,
# because many tests wait; at most five.
PROCESSES := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
PYTEST = @OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(PROCESSES) --maxprocesses 5
test: install ## the quick tests: minutes, and nothing but .venv is needed
	$(PYTEST) -m "not real and not exhaustive" $(ARGS)

test-real: install ## the tests with real Slurm, containers, vLLM (make vllm-cpu), DeepSpeed, Chromium and kubectl
	$(PYTEST) -m "real and not exhaustive" $(ARGS)

test-all: install ## every test, the long matrices too: twenty minutes or more; dates the lines of docs/verified.md
	$(PYTEST) --record-evidence $(ARGS)

mutants: install ## change the code in hundreds of places and count the changes that tests notice: hours (ARGS="roles.py": a part)
	@.venv/bin/python bench/_record.py bench/mutants.py $(ARGS)

lint: install ## style, types, import layers, Dockerfile and shell scripts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy --config-file= --cache-dir=.mypy_cache/bench --ignore-missing-imports --disable-error-code=method-assign bench
	.venv/bin/lint-imports
	@if [ -x .venv/bin/hadolint ]; then .venv/bin/hadolint Dockerfile; else echo "hadolint: no build for this system"; fi
	.venv/bin/shellcheck .ci/* docker/*.sh slurm/*.sh k8s/*.sh

format: install ## format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# All except the comparison with the newest TRL, which installs an environment and needs the package registry, and
# `make mutants`, which takes hours.
BENCHES := $(filter-out bench/newest_trl.py bench/mutants.py,$(wildcard bench/[!_]*.py))
bench: install ## run the benchmarks of the README and append the results to bench/RESULTS.md
	@for script in $(BENCHES); do echo "== $$script"; .venv/bin/python bench/_record.py $$script $(ARGS) || exit 1; done

bench-trl: install ## compare with the newest TRL, installed outside the checkout (1.5 GB or more)
	@.venv/bin/python bench/_record.py bench/newest_trl.py $(ARGS)

# TARGET=cpu and TARGET=test are the small images. BASE=local builds on stand-ins made from this machine's Debian mirror, if
# no image registry, NVIDIA's packages or GitHub are reachable: no nvcc, no flash-attn, Debian's Python.
TARGET ?= runtime
TAG ?= mini-r1:$(TARGET)
LOCAL_BASE = --build-arg PYTHON_BASE=localhost/mini-r1-base:python --build-arg CUDA_BASE=localhost/mini-r1-base:cuda \
	--build-arg PYTHON_PREFERENCE=only-system --build-arg NVCC= --build-arg FLASH_ATTN=0 --build-arg TORCH_CPU_INDEX=
image: ## build the container image for GPUs (TARGET=cpu: the demo's; BASE=local: see the Makefile)
	@$(if $(filter local,$(BASE)),.ci/local-base $(if $(filter runtime,$(TARGET)),cuda,python))
	docker build --target $(TARGET) --tag $(TAG) $(if $(filter local,$(BASE)),$(LOCAL_BASE)) \
		--build-arg REVISION=$(shell git describe --always --dirty=+changes --abbrev=40 --exclude='*') .

# Two are committed, for `kubectl apply -f` from a checkout; a release attaches all of them.
RENDERED := job-4xh100 pytorchjob-2x8h100
manifests: ## build k8s/overlays into build/manifests, for `kubectl apply -f` (needs kubectl or kustomize, no cluster)
	@k8s/render.sh build/manifests
	@cp $(RENDERED:%=build/manifests/%.yaml) k8s/rendered

clean: ## remove caches and build output (.venv, runs and the demo's cached model stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find app tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- locks -----------------------------------------------------------------------------------------------------------
# Nothing newer than this date: an undated resolution of these pins installs and then breaks (pyarrow 26 needs NumPy 2,
# torch 2.5.1 was built against NumPy 1). With the date fixed, the same command gives the same files.
LOCK_DATE := 2025-02-10

COMPILE = @.venv/bin/uv pip compile --quiet --upgrade --generate-hashes --exclude-newer $(LOCK_DATE) \
	--no-emit-index-url --custom-compile-command "make lock"
# One file for Linux and macOS, Intel and Arm, Python 3.10 to 3.12.
UNIVERSAL = --universal --python-version 3.10
# Only for the container image.
IMAGE = --python-version 3.11 --python-platform x86_64-manylinux_2_31
# PyTorch has separate locks, because its build is chosen when installing: torch.txt, torch-cpu.txt (by hand).
NO_TORCH = $(shell sed -nE 's/^([a-z0-9-]+)==.*/--no-emit-package \1/p' app/locks/torch.in)

.venv/bin/uv:
	@$(PYTHON) app/install.py --only uv

lock: .venv/bin/uv ## recreate the locks in app/locks from pyproject.toml
	$(COMPILE) app/locks/uv.in $(UNIVERSAL) -o app/locks/uv.txt
	$(COMPILE) pyproject.toml $(UNIVERSAL) -o app/locks/core.txt
	$(COMPILE) pyproject.toml --extra test $(UNIVERSAL) -o app/locks/test.txt
	$(COMPILE) pyproject.toml --extra train $(UNIVERSAL) $(NO_TORCH) -o app/locks/train.txt
	$(COMPILE) pyproject.toml --extra dev $(UNIVERSAL) $(NO_TORCH) -o app/locks/dev.txt
	$(COMPILE) app/locks/torch.in --no-deps $(UNIVERSAL) -o app/locks/torch.txt
	$(COMPILE) pyproject.toml --extra train --extra gpu --extra tracking $(IMAGE) -o app/locks/gpu.txt
	@git diff --stat -- app/locks
