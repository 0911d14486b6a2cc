"""Paintings."""

from typing import ClassVar

from datamodules.demo import demo_paintings
from datamodules.folder import FolderDataModule
from datamodules.store import Part


class PaintingsDataModule(FolderDataModule):
    """The paintings of Kaggle's "Art Images: Drawing/Painting/Sculptures/Engravings", or any folder of images."""

    layout: ClassVar[dict[str, Part]] = {"training_set/painting": "train", "validation_set/painting": "val"}
    kind = "paintings"
    published = "kaggle:thedownhill/art-images-drawings-painting-sculpture-engraving/dataset/dataset_updated"
    draw_demo = staticmethod(demo_paintings)
