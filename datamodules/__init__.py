from datamodules.fruits import FruitsDataModule

__all__ = ["FruitsDataModule"]
