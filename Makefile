# Everything happens in .venv, made on first use and brought up to date when requirements.lock changes.
PYTHON ?= python3
RUN = .venv/bin/python -m

.PHONY: setup fit study test lint lock

setup: .venv/installed

fit: setup
	.venv/bin/python train.py fit --config configs/vae.yaml

# all nine colorizers, in small and from scratch; a model that fails is named, and the others are reported
study: setup
	-$(RUN) study run --scratch --size 64 --epochs 16 --out runs/demo-study
	$(RUN) study report --out runs/demo-study

test: setup
	$(RUN) pytest --numprocesses auto --dist worksteal

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy .

# After a change of pyproject.toml; needs uv.
lock:
	uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --no-header \
		--output-file requirements.lock

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pigment needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --require-hashes --requirement requirements.lock
	touch .venv/installed
