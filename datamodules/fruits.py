"""Fruits, or any folder of images, as batches on the device."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.demo import demo_fruits
from datamodules.store import DataError, ImageStore, Part, open_store

LAYOUT: dict[str, Part] = {"Training": "train", "Test": "val"}  # as Fruits-360 is published


class FruitsDataModule(LightningDataModule):
    """Fruits-360, or any folder of images.

    Batches are RGB images (B, 3, size, size) in [0, 1], on the device: what every model here takes.
    A folder that holds ``Training`` and ``Test`` is taken as Fruits-360 is published, with ``Test`` for
    validation and test alike; any other is split 80 / 10 / 10 by the content of its files.

    Args:
        root: folder of the images; ``kaggle:owner/dataset/folder`` fetches it; None draws demo fruits.
        size: height and width of every image, in pixels.
        batch_size: images in a batch, on each device; at least 2.
        num_workers: processes that read ahead; with 0 the training process reads, which a store is fast enough for.
        seed: with the epoch it decides the order of the training images.

    Raises:
        ValueError: if a number is too small to work with, or ``root`` is empty.
        DataError: on setup, if ``root`` is not there or holds too few images.
    """

    def __init__(self, root: str | None, size: int, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if root == "":
            raise ValueError("data.init_args.root is empty. Name a folder of images, or null to draw demo fruits.")
        if batch_size < 2:
            raise ValueError(
                f"data.init_args.batch_size is {batch_size}, needs 2 or more: BatchNorm cannot normalize one image."
            )
        if size < 1 or num_workers < 0:
            raise ValueError(f"data.init_args: size is {size}, needs 1 or more; num_workers {num_workers}, 0 or more.")
        self.save_hyperparameters()
        self.root, self.size, self.seed = root, size, seed
        self.batch_size, self.num_workers = batch_size, num_workers

    def prepare_data(self) -> None:
        store = self._open_store()
        if self.root is None:
            rank_zero_info(
                "Data: demo fruits, drawn by this program. For real ones set --data.init_args.root to a folder "
                "of images, or to kaggle:moltean/fruits/fruits-360_100x100/fruits-360 (README, 'Real fruits')."
            )
        rank_zero_info(f"Data: {store.summary()}. What became of each file: {store.folder / 'manifest.csv'}")

    def setup(self, stage: str) -> None:
        self.store = self._open_store()
        if stage == "fit":
            self._check_number("train", at_least=2)
            self._check_number("val", at_least=1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        images = Images(self.store, "train")
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # also in a single process: its order is a function of seed and epoch, whatever happened before
        order: DistributedSampler[Tensor] = DistributedSampler(images, replicas, rank, seed=self.seed)
        # a last batch of one is left out, which in every epoch is another image
        return self._loader(images, sampler=order, drop_last=len(order) % self.batch_size == 1)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(Images(self.store, "val"))

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(Images(self.store, "test" if len(self.store.rows["test"]) else "val"))

    predict_dataloader = test_dataloader

    def on_after_batch_transfer(self, images: Tensor, dataloader_idx: int) -> Tensor:
        return images.float() / 255  # bytes travel; floats are made on the device

    def _open_store(self) -> ImageStore:
        if self.root is None:
            root = demo_fruits()
        elif self.root.startswith("kaggle:"):
            root = fetch(self.root)
        else:
            root = Path(self.root)
        published = all((root / folder).is_dir() for folder in LAYOUT)
        return open_store(root, self.size, LAYOUT if published else None)

    def _check_number(self, part: Part, at_least: int) -> None:
        if len(self.store.rows[part]) < at_least:
            raise DataError(
                f"Of the images in '{self.root}', {len(self.store.rows[part])} fell to {part}, too few: "
                f"{self.store.summary()}. Add images (without folders named {' and '.join(LAYOUT)} their content "
                f"decides where they fall), or see what became of them: {self.store.folder / 'manifest.csv'}"
            )

    def _loader(self, images: "Images", **order: Any) -> DataLoader[Tensor]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **order,
        )


class Images(Dataset[Tensor]):
    """The images of one part of a store, each (3, size, size) uint8."""

    def __init__(self, store: ImageStore, part: Part) -> None:
        self.store, self.rows = store, store.rows[part]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.store.pixels[self.rows[index]].copy())  # torch wants memory it may write


def fetch(root: str) -> Path:
    """Download ``kaggle:owner/dataset/folder``, or find it in Kaggle's own cache, and return the folder."""
    owner, _, dataset_and_folder = root.removeprefix("kaggle:").partition("/")
    dataset, _, folder = dataset_and_folder.partition("/")
    if not (owner and dataset):
        raise DataError(f"'{root}' names no data set. Write kaggle:owner/dataset, or kaggle:owner/dataset/folder.")
    try:
        import kagglehub
    except ImportError:
        raise DataError(
            f"'{root}' is fetched by kagglehub, which is not installed: .venv/bin/pip install 'kagglehub>=0.3,<2'"
        ) from None
    try:
        return Path(kagglehub.dataset_download(f"{owner}/{dataset}"), folder)
    except Exception as error:  # its own errors share no base class
        raise DataError(
            f"Kaggle did not give '{root}': {error}. Or download it with a browser, and set root to its folder."
        ) from error
