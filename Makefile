# make digits       train, evaluate and draw a VDM on scikit-learn's digits
# make cifar        train, evaluate and draw a VDM on CIFAR-10, prepared in DATA (docs/guide/data.md)
# make check        the tests that a change needs most, under 90 seconds
# make test         the tests, except those of the next two
# make slow         the longest tests
# make soak         whole runs that are stopped, killed, out of disk space, in many processes, under Slurm
# make gpu          what the GPU of this machine does, in runs/gpu/report.md, within nine minutes: make gpu DATA=…
# make lint         ruff (lint and format), mypy, and the order of imports
# make reference    docs/reference.md, from the code
# make site         the documents as a site that needs no network, in site/: open site/index.html
# make constraints  a new .venv with the newest versions; if all tests pass, writes them to constraints.txt
# make clean        remove the environments (and nothing that a run wrote)
#
# All but `site` and `gpu` share one virtual environment, .venv, which the first of them makes with PYTHON (3.11 to
# 3.13) and the versions of constraints.txt, those that the tests passed with.

PYTHON ?= python3
DATA ?= $(HOME)/tensorflow_datasets
PY := .venv/bin/python
CHECK := $(addprefix tests/,data diffusion/test_model_bound.py diffusion/test_process.py diffusion/test_schedule.py \
	test_component.py test_config.py test_commandline.py test_documents.py test_workdir.py test_main.py)
SOAK := tests/soak
# Python compiles what is imported when it is imported; compiling all that is installed takes longer than that.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile

unexport PYTHONDONTWRITEBYTECODE  # otherwise each process compiles all that it imports, for seconds

GPU :=  # flags of experiments.on_gpu

.PHONY: digits cifar check test slow soak gpu lint reference site constraints clean

digits: .venv/installed
	$(PY) -m vdm.main --config=configs/digits.py --workdir=runs/digits --config.eval.passes=400

cifar: .venv/installed
	$(PY) -m vdm.main --config=configs/cifar10_laptop.py --workdir=runs/cifar --config.data.data_dir='$(DATA)'

check: .venv/installed-dev
	$(PY) -m pytest -n 3 --dist loadfile $(CHECK)

test: .venv/installed-dev
	$(PY) -m pytest -n 3 --dist loadfile

slow: .venv/installed-dev
	$(PY) -m pytest -n 3 --dist loadfile -m slow

soak: .venv/installed-dev
	$(PY) -m pytest -n 3 --dist loadfile $(SOAK)

gpu:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m experiments.on_gpu --data_dir='$(DATA)' $(GPU)

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

reference: .venv/installed
	$(PY) docs/reference.py

site: .venv-docs/installed
	rm -rf site build/site
	.venv-docs/bin/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
	mv build/site site

constraints: clean
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	touch .venv/installed .venv/installed-dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -n 3 --dist loadfile -m '' tests tests/soak
	$(PY) .ci/constraints.py constraints.txt

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@echo "Installing into .venv, once: about a minute."
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

.venv-docs/installed: docs/requirements.txt
	@echo "Installing into .venv-docs, once: about a minute."
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-docs
