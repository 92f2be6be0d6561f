# make digits   train, evaluate and draw a VDM on scikit-learn's digits
# make test     run the tests
# make clean    remove the environment (and nothing that a run wrote)
#
# Both make their own virtual environment in .venv, with PYTHON (3.11 to 3.13).

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: digits test clean

digits: .venv/installed
	$(PY) -m vdm.main --config=configs/digits.py --workdir=runs/digits

test: .venv/installed-test
	$(PY) -m pytest -n 2 --dist loadfile

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv
