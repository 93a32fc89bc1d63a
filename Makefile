# `make help` lists what there is. Each target makes the environment by itself when it is missing or out of date.
PYTHON ?= python3
VENV   ?= .venv
VERB   ?= train
ARGS   ?=
NODES  ?= 2
PROCS  ?= 1

COMPOSED := $(addprefix tests/test_,config.py door.py sweep.py targets.py docs.py)

BIN    := $(VENV)/bin
MADE   := $(VENV)/.made

.DEFAULT_GOAL := help
.PHONY: help run test check docs bench ddp hydra

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo '  ARGS="model=resnet18 train.epochs=2" are the overrides of run, bench and ddp; PYTHON and VENV choose the environment'

$(MADE): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "tinyexp needs Python 3.10 or newer; give PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(MADE)  ## train; ARGS="model=resnet18 train.epochs=2"
	@$(BIN)/python -m tinyexp $(filter-out train,$(VERB)) $(ARGS)

test: $(MADE)  ## all tests; ARGS="-m slow" only those that make check leaves out
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

check: $(MADE)  ## lint, format, types, layers, docs/configuration.md and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/configuration.py --check
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

docs: $(MADE)  ## docs/configuration.md from conf/ and its types
	$(BIN)/python docs/configuration.py

hydra: $(MADE)  ## the tests of composition with the oldest Hydra that we take and with the next one
	for wanted in 'hydra-core==1.3.4' 'hydra-core>=1.4.0.dev0,<1.5'; do \
		folder=$$(mktemp -d) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --pre --target $$folder "$$wanted" && \
		PYTHONPATH=$$folder $(BIN)/python -c 'import hydra; print("hydra-core", hydra.__version__)' && \
		PYTHONPATH=$$folder $(BIN)/python -m pytest -q -n 2 -m "not slow" $(COMPOSED) && \
		rm -r $$folder || exit 1; \
	done

bench: $(MADE)  ## the step against a bare loop
	$(BIN)/python benchmarks/step.py $(ARGS)

SPREAD = hw.nodes=$(NODES) hw.procs=$(PROCS) $(if $(MASTER),hw.master=$(MASTER)) $(if $(NODE),hw.node=$(NODE))

ddp: $(MADE)  ## NODES machines of PROCS processes; rehearsed here, or with MASTER=HOST[:PORT] really
ifeq ($(if $(MASTER),$(if $(NODE),,lines)),lines)
	@echo 'the line to type on each machine, on $(MASTER) the first:'
	@for node in $$(seq 0 $$(($(NODES) - 1))); do \
		echo "  make ddp NODES=$(NODES) PROCS=$(PROCS) MASTER=$(MASTER) NODE=$$node"' $(if $(filter-out train,$(VERB)),VERB="$(VERB)") $(if $(ARGS),ARGS="$(ARGS)")'; \
	done
else
	@$(BIN)/python -m tinyexp $(filter-out train,$(VERB)) $(ARGS) $(SPREAD)
endif
