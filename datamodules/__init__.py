"""The data sets. Each is imported when it is first asked for, so that this room's light modules stay light."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.fruits import FruitsDataModule
    from datamodules.paintings import PaintingsDataModule

__all__ = ["FruitsDataModule", "PaintingsDataModule"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
    return getattr(import_module(f"datamodules.{name.removesuffix('DataModule').lower()}"), name)
