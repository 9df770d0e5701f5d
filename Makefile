# make demo   set up, compare six losses on scikit-learn's digits, draw the picture
# make test   set up, check style and types, run the whole suite
# make docs   set up, build the site in build/site; GALLERY=0 leaves out the pictures of the gallery
# make wheel  build the source distribution and the wheels in dist/, test each in an empty environment; TORCH is the torch there
# Needs Python >= 3.11 with venv and pip; everything else goes into .venv
PYTHON ?= python3
BIN := .venv/bin

GALLERY ?= 1
TORCH ?= torch

.PHONY: demo test check format docs wheel clean

demo: .venv/ready
	$(BIN)/cyclofocal compare digits --out demo

test: check .venv/hosts
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet --no-progress .github
	if command -v actionlint; then actionlint; fi

docs: .venv/docs
	rm -rf build/site
	GALLERY=$(GALLERY) $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site

wheel: .venv/wheel
	$(BIN)/python .ci/wheel.py --torch '$(TORCH)'

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/ready: pyproject.toml setup.py src/cyclofocal/kernels/native.cpp
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test]'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

.venv/wheel: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[wheel]'
	touch $@

# Everything that the library works with: 7 GB in all.
.venv/hosts: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test,hosts,ray,slurm]'
	touch $@

clean:
	rm -rf .venv build demo dist docs/gallery src/*.egg-info
