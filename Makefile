# Everything a newcomer needs; `make help` lists it. Each target sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip is told to be quiet: what it does is said in one line instead.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
RUN_STAMP := $(VENV)/run.stamp
DEV_STAMP := $(VENV)/dev.stamp
EVALUATE_STAMP := $(VENV)/evaluate.stamp
BENCH_STAMP := $(VENV)/bench.stamp
# A Milvus server for the tests, apart from what we install and pin for ourselves. Its package is there for Linux on
# x86-64; elsewhere the tests on it are skipped.
MILVUS := .venv-milvus
MILVUS_STAMP := $(MILVUS)/installed.stamp
MILVUS_STAMPS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(MILVUS_STAMP))
# The tools that check deploy/. Some are Debian packages, which are unpacked there and not installed: elsewhere the
# checks with them are not made.
DEPLOY := .venv-deploy
DEPLOY_STAMP := $(DEPLOY)/installed.stamp
DEPLOY_STAMPS := $(if $(shell command -v apt-get),$(DEPLOY_STAMP))
# What builds and audits a release: only files whose hashes are listed.
RELEASE := .venv-release
RELEASE_STAMP := $(RELEASE)/installed.stamp
TEST_STAMPS := $(DEV_STAMP) $(MILVUS_STAMPS) $(DEPLOY_STAMPS)
IMAGES ?=
WORKERS ?=
# Without the limit that other tests have.
LONG_TEST := $(BIN)/python -m pytest -s -o faulthandler_timeout=0
# More flags for the command behind a target: run, serve, evaluate, test, the benchmarks.
ARGS ?=
LOOKALIKE := $(BIN)/lookalike

.DEFAULT_GOAL := help
.PHONY: help run serve caltech101 evaluate bench-embedder bench-steadiness bench-search bench-ingest bench-services \
	bench-loadtest bench-fairness soak test milvus fuzz faults lint format check-deploy check-images pin-images dashboards \
	protos docs constraints audit release clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_STAMP)  ## The whole thing on sample images: build, ingest, search, report. IMAGES=DIR takes your own.
	$(LOOKALIKE) quickstart $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

serve: $(RUN_STAMP)  ## Start both services on loopback and stay, until Ctrl-C.
	$(LOOKALIKE) serve $(ARGS)

caltech101: $(RUN_STAMP)  ## Download Caltech-101 (137 MB) to var/caltech101.
	$(LOOKALIKE) caltech101

evaluate: $(EVALUATE_STAMP)  ## Measure a model and ways to search on IMAGES=DIR, a folder per class; writes a report.
	$(LOOKALIKE) evaluate --images "$(or $(IMAGES),var/caltech101/101_ObjectCategories)" --exclude BACKGROUND_Google $(ARGS)

bench-embedder: $(BENCH_STAMP)  ## Measure the embedder beside its bare model and other servers of it. IMAGES=DIR.
	$(BIN)/python -m benchmarks.embedder $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

bench-steadiness: $(BENCH_STAMP)  ## Check the embedder at half load, overload, a storm of deadlines, a drain. IMAGES=DIR.
	$(BIN)/python -m benchmarks.steadiness $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

bench-search: $(BENCH_STAMP) $(MILVUS_STAMPS)  ## Measure the search beside pymilvus, on a Milvus server and on Lite, and others.
	$(BIN)/python -m benchmarks.search $(ARGS)

bench-ingest: $(BENCH_STAMP)  ## Measure an ingest beside the embedder alone: what it leaves of its speed. IMAGES=DIR.
	$(BIN)/python -m benchmarks.ingest $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

bench-services: $(BENCH_STAMP) $(MILVUS_STAMPS)  ## Both services under every kind of load, by lookalike loadtest. IMAGES=DIR.
	$(BIN)/python -m benchmarks.services $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

bench-loadtest: $(BENCH_STAMP)  ## Measure what the load-test client itself adds, at 1,500 calls/s of 15 KB.
	$(BIN)/python -m benchmarks.loadtest $(ARGS)

bench-fairness: $(BENCH_STAMP)  ## Measure a modest caller alone and beside one who floods, through both services. IMAGES=DIR.
	$(BIN)/python -m benchmarks.fairness $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

soak: $(BENCH_STAMP)  ## Ten minutes of mixed load on the embedder, in which it must not grow. IMAGES=DIR.
	$(BIN)/python -m benchmarks.soak $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

test: $(TEST_STAMPS)  ## Run all tests. WORKERS=3: in three processes, each with a Milvus server of its own.
	$(BIN)/python -m pytest $(if $(WORKERS),--numprocesses $(WORKERS) --dist loadfile) $(ARGS)

milvus: $(MILVUS_STAMP)  ## Install the Milvus server that tests run on; make test does so by itself.

fuzz: $(TEST_STAMPS)  ## Send 20,000 hostile images, and 50,000 hostile calls, to real services; make test sends fewer.
	LOOKALIKE_FUZZ=20000 $(LONG_TEST) tests/integration/test_fuzz.py
	LOOKALIKE_FUZZ_CALLS=50000 $(LONG_TEST) tests/integration/test_fuzz_calls.py

faults: $(TEST_STAMPS)  ## Hours: the long forms of docs/reliability.md: kill -9, hangs, networks, disks, hostile rows, ingests.
	LOOKALIKE_CASES=5000 $(LONG_TEST) tests/integration/test_hostile_rows.py
	LOOKALIKE_HANG_SECONDS=30 $(LONG_TEST) tests/integration/test_hanging_milvus.py
	LOOKALIKE_REINDEX_ROWS=20000 $(LONG_TEST) tests/integration/test_reindex.py -k "under_load and server"
	LOOKALIKE_MACHINE_STEPS=1000 $(LONG_TEST) tests/integration/test_data_path.py
	LOOKALIKE_KILLS=20 LOOKALIKE_CRASH_ROWS=50000 $(LONG_TEST) tests/integration/test_crash.py
	LOOKALIKE_INTERRUPTIONS=10 $(LONG_TEST) tests/integration/test_ingest_command.py
	LOOKALIKE_BULK_ROWS=200000 $(LONG_TEST) tests/integration/test_bulk_import.py
	LOOKALIKE_FAULT_SECONDS=15 $(LONG_TEST) tests/integration/ -k "test_faulty"

lint: $(DEV_STAMP)  ## Check format, style, types, the contract, and that its stubs are up to date.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/protos.py --check

format: $(DEV_STAMP)  ## Format the code and mend what can be mended.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check-deploy: $(DEPLOY_STAMP)  ## Check deploy/ with the real tools: schemas, policies, rules, dashboards, linters.
	$(DEPLOY)/bin/python -m deploy.checks $(ARGS)

check-images: $(DEV_STAMP)  ## Run what the Dockerfiles install, in clean environments. ARGS="search" takes one of them.
	$(BIN)/python -m deploy.docker.prove_install $(ARGS)

pin-images:  ## Put the digest behind the tag of every image in deploy/; asks the registries, by docker.
	$(PYTHON) -m deploy.docker.pin_images

dashboards:  ## Generate the dashboards and the PrometheusRule in deploy/monitoring.
	$(PYTHON) deploy/monitoring/generate.py

protos: $(DEV_STAMP)  ## Generate the stubs from protos/.
	$(BIN)/python scripts/protos.py

docs: $(DEV_STAMP)  ## Generate docs/settings.md from the settings of both servers.
	$(BIN)/python scripts/settings_reference.py

constraints: $(DEV_STAMP)  ## Pin the newest versions of all dependencies: constraints.txt, and requirements/ with hashes.
	$(BIN)/uv pip compile --quiet --upgrade --universal --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --extra dev --extra gpu --extra bench --extra release pyproject.toml \
		--output-file constraints.txt
	$(BIN)/python -m scripts.requirements

audit: $(RELEASE_STAMP)  ## Look for known vulnerabilities of what requirements/ pins, in the OSV database.
	$(RELEASE)/bin/python -m scripts.audit $(ARGS)

release: $(RELEASE_STAMP)  ## Build dist/ from the last commit: sdist, wheel, bills of materials, checksums.
	$(RELEASE)/bin/python -m scripts.release $(ARGS)

clean:  ## Remove everything that make and the services wrote.
	rm -rf $(VENV) $(MILVUS) $(DEPLOY) $(RELEASE) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Lookalike needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Lookalike and what it needs into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[quickstart]'
	@touch $@

$(DEV_STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Lookalike and its development tools into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(RUN_STAMP)

$(EVALUATE_STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Lookalike and what it is compared with into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[evaluate]'
	@touch $@ $(RUN_STAMP)

$(BENCH_STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Lookalike and what it is compared with into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[bench]'
	@touch $@ $(RUN_STAMP)

# The package unpacks its binary before each start; here it is once for all.
$(MILVUS_STAMP): constraints-milvus.txt
	@echo "Installing a Milvus server into $(MILVUS) for the tests"
	$(PYTHON) -m venv --clear $(MILVUS)
	$(MILVUS)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-milvus.txt milvus
	$(MILVUS)/bin/python -c "import milvus; config = milvus.MilvusServerConfig(data_dir='$(MILVUS)/server'); \
		config.resolve(); milvus._initialize_data_files(config.base_data_dir)"
	@touch $@

$(RELEASE_STAMP): requirements/release.txt
	@echo "Installing the tools that build and audit a release into $(RELEASE)"
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: --require-hashes \
		--requirement requirements/release.txt
	@touch $@

# checkov pins old versions of what others need in new ones, so it is apart.
$(DEPLOY_STAMP): deploy/checks/requirements.txt
	@echo "Installing the tools that check deploy/ into $(DEPLOY)"
	$(PYTHON) -m venv --clear $(DEPLOY)
	$(DEPLOY)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	$(PYTHON) -m venv $(DEPLOY)/checkov
	$(DEPLOY)/checkov/bin/python -m pip --disable-pip-version-check install --quiet checkov==3.3.30
	cd $(DEPLOY) && { apt-get download -qq prometheus prometheus-alertmanager \
		|| { apt-get update -qq && apt-get download -qq prometheus prometheus-alertmanager; }; }
	for package in $(DEPLOY)/*.deb; do dpkg --extract "$$package" $(DEPLOY)/debian || exit 1; rm "$$package"; done
	@touch $@
