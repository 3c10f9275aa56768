# Everything runs in .venv, which `setup` makes; no target needs it activated.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup paper store test check notebooks-test test-docs export notebooks docs preview screenshots benchmark toy toy-position hooks clean
.NOTPARALLEL:
# Tests are many small passes, which gain little from a second thread: a worker for each core, one thread each, at most
# four of them, since each may hold a model. Tests of one file stay together, with what they share.
WORKERS := $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); echo $$(( n < 4 ? n : 4 )))

BIN := .venv/bin
# GPT-2 small's attention weights, where they lie beside the checkout; chapters that use them skip those cells without
export TALKING_HEADS_GPT2 ?= $(realpath ../shared/gpt2-small-attention)
PYTHON ?= python3
# Notebooks whose cells are tests; the reruns take long and are parameterised, so `make paper` and `make notebooks` run them.
SKIP_NBS := ^([_.]|paper|benchmark)
ALL := $(filter-out nbs/index.ipynb,$(wildcard nbs/[!_.]*.ipynb nbs/[!_.]*/[!_.]*.ipynb))
TESTED := $(foreach f,$(ALL),$(if $(filter paper% benchmark%,$(notdir $(f))),,$(f))) $(wildcard nbs/index.ipynb)
NOTEBOOKS := $(ALL) $(wildcard index.ipynb)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: ## make .venv with the package, its tools and the default model (PYTHON=python3.12 picks the Python)
	@$(PYTHON) -c '' 2>/dev/null || { echo 'Set-up failed. $(PYTHON) does not run here; name a Python that does: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) tools/bootstrap.py

paper: setup ## rerun the paper: MODEL=smollm2 SEED=0 OUT=runs/paper PARAMS="n_prompts=50 how=quick"
	@$(BIN)/th_paper --model "$(or $(MODEL),smollm2)" --seed "$(or $(SEED),0)" --out "$(or $(OUT),runs/paper)" $(PARAMS)

store: setup ## check a finished run and put it where the site shows it: RUN=runs/paper (NAME=file TITLE='page title')
	@$(BIN)/python tools/store_run.py "$(or $(RUN),runs/paper)" $(if $(NAME),"$(NAME)") $(if $(TITLE),"$(TITLE)")

test: setup check notebooks-test ## all tests: the fast check, the notebooks' cells, pytest
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests -n $(WORKERS) --dist loadfile --durations=25

check: setup ## the fast check: export in sync, notebooks clean, README.md up to date
	@$(BIN)/python tools/check.py

# nbdev_test succeeds when it finds no notebook, and when it skips one: count those it says it completed.
# HF_HUB_OFFLINE: a test reads what is on disk and never waits for a network.
notebooks-test: setup ## run the notebooks' cells as tests
	@set -o pipefail; log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs --skip_file_re '$(SKIP_NBS)' --skip_folder_re '^([_.]|runs$$)' --n_workers $(WORKERS) --do_print | tee $$log || exit 1; \
	ran=$$(grep -c '^- Completed' $$log || true); \
	if (( ran == 0 || ran != $(words $(TESTED)) )); then echo "Only $$ran of the $(words $(TESTED)) notebooks in nbs/ ran." >&2; exit 1; fi

test-docs: setup ## build the site and try every page in Chromium (skipped, with the reason, where there is none)
	@$(BIN)/pytest tests/test_docs.py -rs

export: setup ## write talking_heads/ and README.md from the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/make_readme.py

notebooks: export ## export, then run the notebooks and store their outputs (NB=nbs/base/core.ipynb for some)
	@$(BIN)/python tools/run_notebooks.py $(or $(NB),$(NOTEBOOKS))
	@$(BIN)/python tools/make_readme.py

docs: setup ## build the site from the stored notebooks into _docs/ (ARGS="--out FOLDER" puts it elsewhere)
	@$(BIN)/th_docs $(ARGS)

preview: setup ## serve the site and build it again whenever a notebook changes (PORT=8000)
	@$(BIN)/th_docs --preview --port "$(or $(PORT),8000)"

screenshots: setup ## build the site and take a picture of every page, light, dark and narrow (OUT=screenshots)
	@$(BIN)/python tools/screenshots.py "$(or $(OUT),screenshots)"

benchmark: setup ## measure on this machine and store the outputs of nbs/guides/benchmark.ipynb
	@$(BIN)/python tools/run_notebooks.py nbs/guides/benchmark.ipynb

toy: setup ## train the toy model of nbs/toys/toy.ipynb anew, into the package
	@$(BIN)/python -c 'from talking_heads.toys.toy import make_toy; print(make_toy("talking_heads/models/toy"))'

toy-position: setup ## train the model of nbs/toys/toy_position.ipynb anew, into the package
	@$(BIN)/python -c 'from talking_heads.toys.toy_position import make_toy_position; print(make_toy_position("talking_heads/models/toy-position"))'

hooks: ## let git run the fast check before each commit
	@git config core.hooksPath .githooks
	@echo 'git runs .githooks/pre-commit from now on; `git config --unset core.hooksPath` undoes it.'

clean: ## remove what is generated, except .venv and your results in runs/
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
