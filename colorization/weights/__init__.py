"""The model that comes with the project."""

from pathlib import Path

PALETTE = Path(__file__).with_name("palette.safetensors")
