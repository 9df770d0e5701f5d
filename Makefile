# make demo   set up, compare six losses on scikit-learn's digits, draw the picture
# make test   set up, check style and types, run the whole suite
# Needs Python >= 3.11 with venv and pip; everything else goes into .venv
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format clean

demo: .venv/ready
	$(BIN)/cyclofocal compare digits --out demo

test: check .venv/hosts
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/ready: pyproject.toml setup.py src/cyclofocal/kernels/native.cpp
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test]'
	touch $@

# Everything that the library works with: 7 GB in all.
.venv/hosts: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test,hosts,ray,slurm]'
	touch $@

clean:
	rm -rf .venv build demo src/*.egg-info
