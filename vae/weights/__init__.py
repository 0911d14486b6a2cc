"""The VAE that comes with the project."""

from pathlib import Path

FRUIT = Path(__file__).with_name("fruit.safetensors")
