PYTHON ?= python3
SHELL := bash
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

help: ## this list
	@sed -nE 's/^##@ (.*)/\n\1/p; s/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

##@ Learn (pictures in runs/)

digits: $(STAMP) ## learn handwritten digits, and draw what happened
	$(RUN) -m experiments.digits

distributed: $(STAMP) ## learn in two processes
	$(RUN) -m experiments.common.launch --processes 2 -- -m experiments.digits --distributed --out runs/distributed

private: $(STAMP) ## learn them privately: accuracy against ε
	$(RUN) -m experiments.private

convolution: $(STAMP) ## a convolutional network, and δ on its way back
	$(RUN) -m experiments.convolution

mnist1d: $(STAMP) ## one-dimensional digits, beside a paper's figures
	$(RUN) -m experiments.convolution --mnist1d --out runs/mnist1d

panel: $(STAMP) ## what every step tells of its gradients
	$(RUN) -m experiments.panel

precision: $(STAMP) ## what bfloat16 and float16 cost, and what a step in parts saves
	$(RUN) -m experiments.precision

nielsen: $(STAMP) ## the experiments of Nielsen's book
	$(RUN) -m experiments.nielsen

seeds: $(STAMP) ## accuracy of the digits over five seeds
	$(RUN) -m experiments.common.seeds

##@ Check

# Programs that were compiled once are kept: by the other worker, the next run, the wheel's tests.
COMPILED := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# Without the compiler's optimisations the tests take half the time. On the newest Python they run
# with them and without the checks of every annotation, as users do.
# Lines are counted there too: before Python 3.12 that takes a fifth of the time.
COVERED := --cov --cov-report=
ALL_COVERED := --cov --cov-append --cov-report=term-missing:skip-covered --cov-fail-under=98
AS_USERS := -o addopts="--doctest-modules --doctest-glob=README.md --strict-markers"
QUICK = $(COMPILED) XLA_FLAGS="$$($(RUN) tools/quick_compiler.py)"

# A file's tests stay with one worker, which compiles what they share once.
SHARED := -n auto --dist loadfile
TOY := tests/experiments/test_benchmark.py::test_the_whole_command_at_toy_size

# Those that take longest are marked `long`, with how many of their cases always run.
test: $(STAMP) ## every test and example, of the long ones a few cases
	$(QUICK) $(RUN) -m pytest $(SHARED) --cases short

test-long: $(STAMP) ## the other cases
	$(QUICK) $(RUN) -m pytest $(SHARED) --cases rest --deselect $(TOY) --ignore tests/mesh

# Eight devices in one process; programs of all of them, several at once, may wait for each other.
MESH := JAX_NUM_CPU_DEVICES=8 JAX_CPU_ENABLE_ASYNC_DISPATCH=false

test-mesh: $(STAMP) ## meshes of eight devices
	$(MESH) $(QUICK) $(RUN) -m pytest $(SHARED) tests/mesh

# Which cases run on the newest Python; `make test-newest CASES=all` takes most of an hour.
CASES ?= short
# Of meshes those that are Explicit alone, which refuse what an Auto mesh lets pass.
STRICTER := -k "not auto" --ignore tests/mesh/test_two_processes.py

test-newest: ## the short ones on the newest Python here, with coverage
	@newest=$$($(PYTHON) tools/newest_python.py) || { echo "No Python newer than the default here: its tests were not run."; exit 0; }; \
	$(MAKE) test-there VENV=.venv-newest PYTHON=$$newest

test-there: $(STAMP)
	$(RUN) -c "import jax, sys; print('Python', sys.version.split()[0], '- JAX', jax.__version__)"
	$(COMPILED) COVERAGE_CORE=sysmon $(RUN) -m pytest $(AS_USERS) $(SHARED) --cases $(CASES) --deselect $(TOY) $(COVERED)
	$(MESH) $(QUICK) COVERAGE_CORE=sysmon $(RUN) -m pytest $(AS_USERS) $(SHARED) --cases $(CASES) tests/mesh $(STRICTER) $(ALL_COVERED)

test-wheel: $(STAMP) ## the same from the built wheel, elsewhere
	rm -rf dist .venv-wheel
	$(RUN) -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet "$$(ls dist/*.whl)"
	.venv-wheel/bin/python -W error -c "import jbackprop"
	.venv-wheel/bin/python -m pip install --quiet "$$(ls dist/*.whl)[dev]"
	$(QUICK) PYTHON=$(CURDIR)/.venv-wheel/bin/python tools/test_elsewhere.sh

# The benchmark, a package and no file, is run at toy size by a test, which takes a minute of its own.
experiments: $(STAMP) ## every experiment for a few steps
	@set -e; out=$$(mktemp -d); for file in experiments/*.py; do \
	name=$$(basename $$file .py); echo "experiment: $$name"; \
	$(QUICK) $(RUN) -m experiments.$$name --quick --out $$out/$$name; done; rm -r $$out
	$(QUICK) $(RUN) -m pytest -q $(TOY)

interop: $(STAMP) ## models from and to other libraries
	@$(RUN) -m pip install --quiet '.[benchmark]' || echo "PyTorch, Equinox and Flax could not be installed: what needs them is left out."
	@set -e; for file in experiments/interop/from_*.py; do \
	name=$$(basename $$file .py); echo "example: $$name"; $(QUICK) $(RUN) -m experiments.interop.$$name; done
	$(QUICK) $(RUN) -m pytest -q tests/test_convert.py
	$(QUICK) $(RUN) -m pytest -q tests/test_docs.py -k "runs and from_"

mutants: $(STAMP) ## every one-line fault by turns (hours; resumes)
	$(QUICK) $(RUN) -m tests.planted map
	$(QUICK) $(RUN) -m tests.planted all
	$(QUICK) $(RUN) -m tests.planted again --seconds 40

mutants-sample: $(STAMP) ## fifteen of those faults: all must be found
	$(QUICK) $(RUN) -m tests.planted sample

kills: $(STAMP) ## a hundred kills -9: every run goes on to the same bits (10 minutes)
	KILLS=100 $(QUICK) $(RUN) -m pytest -q tests/experiments/test_resume.py -k killed_at_any_moment

soak: $(STAMP) ## a million steps, twice: does anything pile up? (3 minutes)
	$(RUN) -m experiments.soak

wrong-parts: $(STAMP) ## does `verify` find what is wrong? 200 networks (20 minutes)
	$(QUICK) $(RUN) -m experiments.wrong_parts

##@ Measure

benchmark: $(VENV)/.benchmark ## time it beside its peers (20 minutes)
	$(RUN) -m experiments.benchmark --readme README.md

BEFORE ?= HEAD~1
against: $(STAMP) ## what a change costs beside BEFORE=…
	$(RUN) -m experiments.benchmark.against --commit $(BEFORE)

benchmark-convolution: $(VENV)/.benchmark ## convolutional networks (20 minutes)
	$(RUN) -m experiments.benchmark.convolution --readme README.md --out experiments/benchmark/results

profile-convolution: $(VENV)/.benchmark ## where a convolutional step's time goes
	$(RUN) -m experiments.benchmark.layers

benchmark-apply: $(VENV)/.benchmark ## `apply` beside the native step and Flax
	$(RUN) -m experiments.benchmark.plugged

benchmark-streaming: $(STAMP) ## data from a file beside data on the device
	$(RUN) -m experiments.benchmark.streaming

donation: $(STAMP) ## what it costs to keep the state of a step
	$(RUN) -m experiments.benchmark.donation

##@ Read

picture: $(STAMP) ## draw the README's pictures anew
	rm -rf build/picture
	$(RUN) -m experiments.digits --out build/picture
	$(RUN) -m experiments.private --out build/picture
	$(RUN) -m experiments.panel --out build/picture
	$(RUN) -m experiments.convolution --out build/picture
	cp build/picture/*/{hardest,deltas,privacy,panel,flow}.png docs/

walkthrough: $(VENV)/.docs ## the slides with every number, as one page
	$(RUN) tools/render.py experiments/walkthrough.py build/walkthrough.html

docs: $(VENV)/.docs ## the documentation as a site, its links checked
	rm -rf build/docs docs/generated
	$(QUICK) $(RUN) -m sphinx -W --keep-going -q -b html docs build/docs
	$(RUN) tools/check_links.py build/docs
	$(QUICK) $(RUN) -m pytest -q tests/test_render.py tests/test_pages.py

##@ Tidy

lint: $(STAMP) ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(STAMP) ## put the format right
	$(RUN) -m ruff check --fix --exit-zero --quiet .
	$(RUN) -m ruff format .

types: $(STAMP) ## pyright, strict; everything public has a type
	$(VENV)/bin/pyright
	@said=$$(PATH=$(CURDIR)/$(VENV)/bin:$$PATH pyright --verifytypes jbackprop --ignoreexternal); \
	status=$$?; echo "$$said" | grep -E "error|completeness"; exit $$status

clean: ## remove environments, builds and caches
	rm -rf .venv .venv-newest .venv-wheel dist build .coverage .pytest_cache .ruff_cache .hypothesis

# Installed again only when pyproject.toml changes.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[experiments,privacy,dev]'
	@touch $@

$(VENV)/.docs: $(STAMP)
	$(RUN) -m pip install --quiet --editable '.[docs,privacy,dev]'
	@touch $@

# The peers are large: only a benchmark installs them.
$(VENV)/.benchmark: $(STAMP)
	$(RUN) -m pip install --quiet --editable '.[experiments,privacy,benchmark]'
	$(RUN) -m pip install --quiet --no-deps backpack-for-pytorch einops opacus unfoldNd  # else a torch of several GB
	@touch $@

.PHONY: help digits distributed private convolution mnist1d panel precision nielsen seeds test test-long test-mesh test-newest test-wheel experiments interop mutants mutants-sample kills soak wrong-parts benchmark against benchmark-convolution profile-convolution benchmark-apply benchmark-streaming donation picture walkthrough docs lint format types clean test-there
