# Everything runs in .venv, which is made on first use and updated when requirements.lock changes.
PYTHON ?= python3
RUN = .venv/bin/python -m

.PHONY: setup fit study atelier test lint lock

setup: .venv/installed

fit: setup
	.venv/bin/python train.py fit --config configs/vae.yaml
	@echo "Next: sharper fruit by .venv/bin/python train.py fit --config configs/vae_residual.yaml (docs/vae.md)"

# All ten colorizers, small and from scratch. If one fails, the page says which and covers the rest.
study: setup
	-$(RUN) study run --scratch --size 64 --epochs 16 --out runs/demo-study
	$(RUN) study page --out runs/demo-study

# A page to play in; it says its address, and ends with Ctrl-C.
atelier: setup
	$(RUN) atelier || [ $$? = 130 ]

test: setup
	$(RUN) pytest --numprocesses auto --dist worksteal

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy .

# Run this after changing pyproject.toml. It needs uv.
lock:
	uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --no-header \
		--output-file requirements.lock

# The sizes are for Linux; systems without CUDA need less. If pip fails, its whole output is shown. It is kept in
# memory because a full disk is one reason to fail.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pigment needs Python 3.11 or newer. Say where it is: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Making .venv with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv .venv
	@echo "Installing torch and the rest of requirements.lock: up to 3.2 GB to download, 6.5 GB on disk, a few quiet minutes."
	@said=$$($(RUN) pip install --quiet --no-input --disable-pip-version-check \
		--require-hashes --requirement requirements.lock 2>&1) || { printf '%s\n' "$$said" >&2; exit 2; }
	@touch .venv/installed
