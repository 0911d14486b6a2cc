import system.environment  # noqa: F401 - before Lightning
from colorization.colorizer import Colorizer, DeepColorizer, ResNetColorizer, ShallowColorizer

__all__ = ["Colorizer", "DeepColorizer", "ResNetColorizer", "ShallowColorizer"]
