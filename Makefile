# Every target builds what it needs. `make help` lists them.
# PIP_ARGS is handed to pip, PYTHON picks the interpreter, VENV the folder of the environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
STUDY ?=
CONFIG ?= config
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
SIEGE_ARGS ?=
GATES_ARGS ?=
MASKS_ARGS ?=
LABELS_ARGS ?=
DURABILITY_ARGS ?=
RESULTS_ARGS ?=

BIN := $(VENV)/bin
# A file of tests stays with one process, for what its tests share; fast files go first.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder
RUNTIME := $(VENV)/.runtime-installed
TOOLS := $(VENV)/.tools-installed
ORTHANC := orthanc orthanc-dicomweb
CHECKERS := dcmtk dicom3tools
DATABASE := postgresql
CUTTERS := e2fsprogs mount strace
WATCHERS := prometheus rsyslog rsyslog-gnutls
BROWSER := chromium
READERS := dcm2niix
EXPERIMENTS := $(filter-out %/people.yaml %/projected.yaml %/uptake.yaml,$(wildcard config/experiments/*.yaml))

.DEFAULT_GOAL := help
.PHONY: help demo serve admin test test-fast lint docs sbom bench labels gates masks geometry durability fuzz siege train results \
	lock clean

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(RUNTIME)  ## Complete one study from end to end and write demo/report.html. STUDY=folder is yours.
	@deploy/install-tools --try $(ORTHANC) $(CHECKERS)
	@$(BIN)/python -m dicom_node.demonstration $(if $(STUDY),"$(STUDY)")

serve: $(RUNTIME)  ## Run the node in the foreground with the folder CONFIG.
	@exec $(BIN)/dicom-node serve --config "$(CONFIG)"

admin: $(RUNTIME)  ## Serve the admin page beside the node, with the folder CONFIG. See docs/admin.md.
	@exec $(BIN)/dicom-node admin --config "$(CONFIG)"

test: $(TOOLS)  ## Run every ring: unit, integration, acceptance.
	@deploy/install-tools $(if $(CI),,--try) $(ORTHANC) $(CHECKERS) $(DATABASE) $(CUTTERS) $(BROWSER) $(WATCHERS) $(READERS)
	@deploy/install-viewer $(if $(CI),,--try) $(VENV)/ohif
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(TOOLS)  ## Run the unit and integration rings.
	@deploy/install-tools $(if $(CI),,--try) $(ORTHANC) $(CHECKERS) $(DATABASE) $(CUTTERS) $(BROWSER) $(WATCHERS) $(READERS)
	@deploy/install-viewer $(if $(CI),,--try) $(VENV)/ohif
	$(PYTEST) -m "not acceptance and not gpu" $(PYTEST_ARGS)

bench: $(TOOLS)  ## Measure the door and the sender beside others; about 40 minutes. BENCH_ARGS=--help.
	@deploy/install-tools $(ORTHANC) $(CHECKERS)
	@PYTHONPATH=.:tests $(BIN)/python -m benchmarks $(BENCH_ARGS)

labels: $(TOOLS)  ## Measure the labels on the real series of DICOM_NODE_DATA and write docs/labels.md.
	@PYTHONPATH=.:tests $(BIN)/python -m labelling $(LABELS_ARGS)

gates: $(TOOLS)  ## Send held-out people of DICOM_NODE_DATA and every fault through the gates. GATES_ARGS=--help.
	@PYTHONPATH=.:tests $(BIN)/python -m gates $(GATES_ARGS)

masks: $(TOOLS)  ## Compare the shipped brain mask with MindGrab's in DICOM_NODE_DATA; minutes a head. MASKS_ARGS=--help.
	@PYTHONPATH=.:tests $(BIN)/python -m gates.masks $(MASKS_ARGS)

geometry: $(TOOLS)  ## Send 204 geometries through the whole path and print the worst errors.
	@PYTHONPATH=.:tests $(BIN)/python -m geometries

durability: $(TOOLS)  ## Kill the receiver and cut its power, 1,000 times each. DURABILITY_ARGS=--help.
	@deploy/install-tools $(CUTTERS)
	@PYTHONPATH=.:tests $(BIN)/python -m durability $(DURABILITY_ARGS)

fuzz: $(TOOLS)  ## Fuzz what a peer's bytes pass, for a minute. FUZZ_ARGS="-max_total_time=3600".
	@PYTHONPATH=.:tests $(BIN)/python -m siege.fuzz $(FUZZ_ARGS)

siege: $(TOOLS)  ## Attack a receiver as hostile peers do; about 6 minutes. SIEGE_ARGS=--help.
	@PYTHONPATH=.:tests $(BIN)/python -m siege $(SIEGE_ARGS)

train: $(TOOLS)  ## Train the shipped models anew from the images of DICOM_NODE_DATA; hours.
	@for experiment in $(EXPERIMENTS); do $(BIN)/synthesis train "$$experiment"; done

results: $(TOOLS)  ## Compute the absent rows of docs/results.md from DICOM_NODE_DATA; hours. RESULTS_ARGS=--help.
	@$(BIN)/synthesis results $(RESULTS_ARGS)

lint: $(TOOLS)  ## Check style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(TOOLS)  ## Write the references of commands, keys and modules; look for dead links.
	@PYTHONPATH=.:tests $(BIN)/python -m reference

sbom: $(RUNTIME)  ## Write build/sbom.json, the bill of materials of the environment (CycloneDX).
	@mkdir -p build; tool=$$(mktemp -d); trap 'rm -rf "$$tool"' EXIT; "$(PYTHON)" -m venv "$$tool"; \
		"$$tool/bin/pip" install --quiet $(PIP_ARGS) "cyclonedx-bom>=7.5,<8"; \
		"$$tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --mc-type application \
			--output-reproducible -o build/sbom.json "$(BIN)/python"

lock:  ## Resolve the dependencies of pyproject.toml anew into requirements/.
	requirements/lock "$(PYTHON)" $(PIP_ARGS)

clean:  ## Remove the environment and what the demo wrote.
	rm -rf "$(VENV)" demo

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name it with PYTHON=..." >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"

$(RUNTIME): requirements/demo.txt pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet $(PIP_ARGS) -r requirements/demo.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLS): requirements/test.txt $(RUNTIME)
	$(BIN)/pip install --quiet $(PIP_ARGS) -r requirements/test.txt
	@touch $@
