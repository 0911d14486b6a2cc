"""The VAE that comes with the project."""

from pathlib import Path

LEARNED = "apples, cherries, grapes, onions, oranges, peaches, and tomatoes"  # its card says more
FRUIT = Path(__file__).with_name("fruit.safetensors")
