import system.environment  # noqa: F401 - before Lightning
from colorization.colorizer import Colorizer, DeepColorizer, ResNetColorizer, ShallowColorizer
from colorization.palette import PaletteColorizer

__all__ = ["Colorizer", "DeepColorizer", "PaletteColorizer", "ResNetColorizer", "ShallowColorizer"]
