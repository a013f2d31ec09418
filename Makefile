# What can be made here. Nothing has to be prepared: each target makes the environment it needs in .venv.
# Arguments of a command go into ARGS, for example: make demo ARGS="--once --json"
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test install-dev install-all format lint type-check check e2e bench docs images clean

BIN := .venv/bin
ARGS ?=
IMAGE ?= localhost/cartridge-warp-worker:dev
# What a site adds to building an image, such as another base or the mount of a proxy's certificate.
BUILD_ARGS ?=
# A stamp's name holds a checksum of what was installed and where, so that only a change installs again.
KEY := $(shell { echo "$(CURDIR)"; cat pyproject.toml constraints.txt; } | cksum | cut -d' ' -f1)
STAMP := .venv/.installed-
DEMO := $(STAMP)demo-$(KEY)
TEST := $(STAMP)test-$(KEY)
DEV := $(STAMP)dev-$(KEY)
DOCS := $(STAMP)docs-$(KEY)

help:
	@echo "make demo         real MongoDB-protocol server and PostgreSQL, sample data, a pipeline; until Ctrl-C"
	@echo "make test         every test, against real servers, with coverage"
	@echo "make check        ruff, formatting, mypy --strict, layers of the modules"
	@echo "make e2e          the worker's image as a pod: KUBECONFIG, or a kind cluster"
	@echo "make format, lint, type-check, bench, docs, images, install-dev, install-all, clean"

demo: $(DEMO)
	@exec $(BIN)/cartridge-warp demo --manifest manifests/examples/warppipeline.yaml --data examples/data $(ARGS)

test: $(TEST)
	@exec $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --durations 10 \
	  --cov --cov-report term:skip-covered $(ARGS)

check: lint type-check

format: $(DEV)
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# All three say what they found, whichever fails first.
lint: $(DEV)
	@failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/lint-imports --no-logo || failed=1; \
	exit $$failed

type-check: $(DEV)
	@$(BIN)/mypy

e2e: $(DEV)
	@exec $(BIN)/python -m pytest e2e --durations 5 $(ARGS)

bench: $(DEV)
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

docs: $(DOCS)
	@$(BIN)/python -m cartridge_warp.config.reference > .venv/configuration.md
	@mv .venv/configuration.md docs/configuration.md
	@$(BIN)/python -m cartridge_warp.connectors.postgresql.reference > .venv/metadata.md
	@mv .venv/metadata.md docs/metadata.md
	@$(BIN)/mkdocs build --strict
	@echo "docs: site/index.html"

# The first engine that answers: docker is often installed where its daemon does not run.
images:
	@for engine in docker podman buildah; do \
	  if $$engine info >/dev/null 2>&1; then \
	    exec $$engine build $(BUILD_ARGS) -f Dockerfile.worker -t $(IMAGE) .; \
	  fi; \
	done; \
	echo "images: none of docker, podman and buildah answers; start one of them" >&2; exit 1

install-dev: $(DEV)

install-all: $(DEV) $(DOCS)

clean:
	@rm -rf .venv build dist site .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Each larger set of packages also stands for the smaller ones.
$(DEMO):
	@$(call install,demo,the demo,demo)
$(TEST):
	@$(call install,test,the tests,demo test)
$(DEV):
	@$(call install,dev,development,demo test dev)
$(DOCS):
	@$(call install,docs,the documentation,docs)

# $(call install,EXTRA,WHAT FOR,STAMPS): everything it says goes to stderr, since stdout may be somebody's JSON.
# Every Python on the path is tried, since a version manager puts names there that do not run.
# A virtual environment is made again when it does not run, has no pip, or was made in another folder.
define install
exec 1>&2; \
if ! { grep -qsF "$(CURDIR)/.venv" .venv/bin/activate && $(BIN)/python -m pip --version >/dev/null 2>&1; }; then \
  python=; unusable=; \
  for name in $$(type -ap $(or $(PYTHON),python3.13 python3.12 python3.11 python3)); do \
    $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 || continue; \
    if $$name -c 'import venv, ensurepip' >/dev/null 2>&1; then python=$$name; break; fi; \
    unusable=$${unusable:-$${name##*/}}; \
  done; \
  if [ -z "$$python" ]; then \
    if [ -n "$$unusable" ]; then echo "make: $$unusable has no venv module; install it (Debian, Ubuntu: apt-get install $$unusable-venv) and try again"; \
    else echo "make: $(or $(PYTHON:%=% is no),no) Python 3.11, 3.12 or 3.13 $(if $(PYTHON),that runs,was found); install one of them with its venv module and try again"; fi; \
    exit 1; \
  fi; \
  echo "make: creating .venv with $$($$python --version)"; \
  rm -rf .venv; $$python -m venv .venv; \
fi; \
echo "make: installing the packages for $(2) into .venv (once; again when pyproject.toml or constraints.txt change)"; \
$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'; \
rm -f $(foreach set,$(3),$(STAMP)$(set)-*); \
touch $(foreach set,$(3),$(STAMP)$(set)-$(KEY))
endef
