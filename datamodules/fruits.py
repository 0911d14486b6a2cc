"""Fruits-360."""

from typing import ClassVar

from datamodules.demo import demo_fruits
from datamodules.folder import FolderDataModule
from datamodules.store import Part


class FruitsDataModule(FolderDataModule):
    """Fruits-360, or any folder of images."""

    layout: ClassVar[dict[str, Part]] = {"Training": "train", "Test": "val"}
    kind = "fruits"
    published = "kaggle:moltean/fruits/fruits-360_100x100/fruits-360"
    draw_demo = staticmethod(demo_fruits)
