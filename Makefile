# Everything below sets itself up from a fresh clone with Python 3.11 or 3.12 and nothing else;
# test-next takes the newest Python there is.
# PIP_ARGS is handed to pip, e.g. to point it at the CPU or CUDA build of torch you want.

# The first of these that runs: a version manager's shim is found and may still run nothing.
first = $(shell for own in $(1); do $$own -c '' 2>/dev/null && echo $$own && break; done)

PYTHON ?= $(or $(call first,python3.11 python3.12),python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
READY := $(VENV)/.ready
READY_MMDET3D := $(VENV)/.ready-mmdet3d

.PHONY: help setup demo test test-lowest test-next test-slow test-browser mmdet3d test-mmdet3d lint types format clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), \
	  "bevcask needs Python 3.11 or 3.12, this is " + sys.version.split()[0] + "; set PYTHON="'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

setup: $(READY)  ## virtual environment in .venv with everything

demo: $(READY)  ## the whole job on a synthetic world, into runs/demo
	$(BIN)/python -m bevcask.stages.demo runs/demo

test: $(READY)  ## default tests: under five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

LOWEST := $(VENV)-lowest
test-lowest:  ## default tests with the oldest dependencies allowed, in an environment of its own
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python bounds.py lowest > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(LOWEST)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(LOWEST)/constraints.txt \
	  -e . distributed==2025.1 pytest pytest-xdist
	# Old releases are warned by newer ones of others; what is asked is whether they work.
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -W ignore::DeprecationWarning

NEXT := $(VENV)-next
NEWEST ?= $(call first,python3.14 python3.13 python3.12 $(PYTHON))
test-next:  ## default tests with the newest Python and dependencies, numpy 2 among them, in an environment of its own
	$(NEWEST) -m venv --clear $(NEXT)
	$(NEXT)/bin/python bounds.py newest > $(NEXT)/requirements.txt
	$(NEXT)/bin/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(NEXT)/bin/python -m pip install --quiet $(PIP_ARGS) -r $(NEXT)/requirements.txt setuptools distributed pytest pytest-xdist
	$(NEXT)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps nuscenes-devkit
	$(NEXT)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## minutes-long tests: overfitting, kill loops
	$(BIN)/python -m pytest -m slow

test-browser: $(READY)  ## reports in a real Chromium (Debian: apt install chromium; else BEVCASK_CHROMIUM=FILE)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[browser]'
	BEVCASK_REQUIRE_CHROMIUM=1 $(BIN)/python -m pytest -m browser

$(READY_MMDET3D): $(READY) mmdet3d.sh constraints-mmdet3d.txt
	./mmdet3d.sh $(VENV)
	touch $@

mmdet3d: $(READY_MMDET3D)  ## add mmdet3d to the environment; compiles mmcv once, about 7 minutes

test-mmdet3d: $(READY_MMDET3D)  ## tests with a real mmdet3d; under eight minutes on two cores
	BEVCASK_REQUIRE_MMDET3D=1 $(BIN)/python -m pytest -m mmdet3d

lint: $(READY)  ## ruff, formatting and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(READY)  ## mypy, strict
	$(BIN)/mypy
	$(BIN)/mypy stages

format: $(READY)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and all runs
	rm -rf $(VENV) $(LOWEST) $(NEXT) runs .mypy_cache .ruff_cache .pytest_cache
