# pcdiff. `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
READY_DOCS := .venv/.ready-docs
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
  --excludes requirements/unlocked.txt pyproject.toml requirements/build.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two pips in one environment do not mix
.PHONY: help demo test coverage mutants fuzz crashes lint docs checksums lock sbom open3d clean

help:  ## list these targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) .venv/.open3d  ## set up, then design an implant for a built-in case into out/demo
	$(BIN)/pcdiff demo -o out/demo --overwrite

test: $(READY_DEV) .venv/.open3d  ## set up, then lint, check types and run the tests
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=10

coverage: $(READY_DEV)  ## run the tests and list the statements of pcdiff that none of them reaches
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov=pcdiff --cov-report=term-missing:skip-covered

mutants: $(READY_DEV)  ## break forty lines, one at a time; the tests must notice at least 36
	$(BIN)/python tools/mutants.py --jobs 2

fuzz: $(READY_DEV)  ## read thousands of mutations of every format; each is read or refused in one line (half an hour)
	FUZZ=20 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --timeout 7200 -k 'mutat or another_error' tests

crashes: $(READY_DEV)  ## kill each command a hundred times; its files are whole, and a rerun ends as ever (ten minutes)
	CRASHES=100 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --timeout 7200 tests/test_crashes.py

lint: $(READY_DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_examples.py

docs: $(READY_DOCS)  ## build the site of these documents into build/site, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

checksums:  ## list the sha256 of the shipped weights anew, after they were replaced
	cd pcdiff/weights && sha256sum *.safetensors *.yaml >SHA256SUMS

clean:  ## remove what was built, the environment included
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage

lock:  ## resolve requirements/*.txt anew, with hashes (needs uv)
	$(LOCK) -o requirements/run.txt
	$(LOCK) -o requirements/dev.txt --extra dev --extra train
	$(LOCK) -o requirements/docs.txt --extra docs

sbom: $(READY)  ## list every package of the environment with its version and licence, as CycloneDX: build/sbom.json
	test -x build/sbom/bin/cyclonedx-py || { $(PYTHON) -m venv build/sbom && build/sbom/bin/pip install --quiet \
	  --disable-pip-version-check 'cyclonedx-bom>=7,<8'; }
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python

# Every package but torch is of a version and a hash that requirements/ names.
.venv/bin/pip:
	$(PYTHON) -m venv .venv

$(READY): pyproject.toml requirements/run.txt | .venv/bin/pip
	$(PIP) --require-hashes --no-deps -r requirements/run.txt
	$(PIP) --no-build-isolation -e .
	touch $@

$(READY_DEV): pyproject.toml requirements/dev.txt | .venv/bin/pip
	$(PIP) --require-hashes --no-deps -r requirements/dev.txt
	$(PIP) --no-build-isolation -e '.[dev,train]'
	touch $(READY) $@

$(READY_DOCS): pyproject.toml requirements/docs.txt | .venv/bin/pip
	$(PIP) --require-hashes --no-deps -r requirements/docs.txt
	$(PIP) --no-build-isolation -e '.[docs]'
	touch $(READY) $@

# Open3D is the second reconstruction backend, and optional: tried once, done without where it cannot be had.
.venv/.open3d: | $(READY)
	@timeout 300 $(PIP) --no-build-isolation -e '.[open3d]' >.venv/open3d.log 2>&1 || true
	@$(BIN)/python -c 'import open3d' 2>/dev/null || echo "make: going on without open3d (optional). It may lack" \
	  "libraries of the system, which \`make open3d\` installs on Debian and Ubuntu; see .venv/open3d.log"
	@touch $@

open3d: $(READY)  ## install open3d, and on Debian and Ubuntu the system's libraries that it needs (asks for root)
	$(PIP) --no-build-isolation -e '.[open3d]'
	$(BIN)/python -c 'import open3d' 2>/dev/null || { $(SUDO) apt-get update && \
	  $(SUDO) apt-get install -y --no-install-recommends libusb-1.0-0 libgl1 libgomp1 libx11-6 libegl1 </dev/null; }
	$(BIN)/python -c 'import open3d'
	@touch .venv/.open3d
