from datamodules.fruits import FruitsDataModule
from datamodules.paintings import PaintingsDataModule

__all__ = ["FruitsDataModule", "PaintingsDataModule"]
