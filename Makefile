# make demo   the whole path on two CPU workers: a tiny model, a small real corpus, a loss that falls
# make test   all tests; make test-fast leaves out those that run the training stack
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# Which build of torch is right depends on the machine; any in pyproject.toml's range will do.
TORCH ?= torch==2.13.0
# A new virtual environment has the pip that its Python was shipped with.
PIP := pip==26.3
BIN := $(VENV)/bin

.PHONY: demo install test test-fast fuzz check pins schema clean

demo: install
	$(BIN)/cpt demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml pins.txt
	@echo "installing into $(VENV): some 3 GB, some minutes, without a word until it is done"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(PIP)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c pins.txt "$(TORCH)" -e '.[train,dev]'
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-fast: check
	$(BIN)/pytest -m "not e2e and not fuzz"

test: check
	$(BIN)/pytest -m "not fuzz"

# Ten thousand damaged configs; which ones depends on the code, so a find here is news, not a regression.
fuzz: install
	$(BIN)/pytest -m fuzz

# Names and versions of the stack, torch and its CUDA packages left out: those come with TORCH.
pins:
	uv pip compile -q pyproject.toml --extra train --extra fast --extra dev --universal --python-version 3.10 --upgrade \
	  --no-emit-index-url --no-annotate --no-header -o pins.txt
	sed -i -E '/^(torch|triton|nvidia-|cuda-)/d' pins.txt

# LLaMA-Factory's arguments as data, and the JSON Schema for editors.
schema: install
	DS_ACCELERATOR=cpu $(BIN)/python tools/make_schema.py src/cpt_launcher/data/llamafactory.json
	$(BIN)/cpt schema > src/cpt_launcher/data/config.schema.json

clean:
	rm -rf $(VENV) cpt-demo
