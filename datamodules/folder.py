"""Any folder of images, as batches on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop
from tqdm import tqdm

from datamodules.read_ahead import ReadAhead
from datamodules.store import MANIFEST_FILE, ImageStore, Part, as_it_is, leave_group, open_store
from system.errors import PigmentError, shown

BATCH = 256  # images to look through at a time
LARGER = 1.3  # times ``size``: images that parts are cut from, so that the parts need little enlarging


class FolderDataModule(LightningDataModule, ABC):
    """Batches of RGB images (B, 3, size, size) in [0, 1], on the device: what every model here takes.

    A folder in the data set's published layout keeps its two parts; the second serves both validation and test. Any
    other folder is split 80 / 10 / 10 by the content of its files.

    Args:
        root: folder of the images; ``kaggle:owner/dataset/folder`` fetches it; None draws demo images.
        size: height and width of every image, in pixels: the shorter side is scaled to it, the longer cropped.
        batch_size: images in a batch, on each device; at least 2.
        num_workers: processes that read ahead. With 0, the training process reads the store, which is fast enough; if
            it uses a GPU, one of its threads reads ahead.
        seed: decides, with the epoch, the order of the training images and which of them are mirrored.
        flip: mirror about half of the training images, a different half in each epoch.
        crop: train on random square parts of the images, different ones in each epoch: each side is at least this
            share of the whole, at most 1. They are cut from images LARGER times as large, and scaled to ``size``.
        list_files: name the files that are left out, duplicates or nearly colorless, instead of only counting them.

    Raises:
        ValueError: if a number is too small to work with, or ``root`` is empty.
        PigmentError: on setup, if ``root`` is not there or holds too few images.
    """

    layout: ClassVar[dict[str, Part]]  # the folder of each part, as published
    kind: ClassVar[str]  # what the images show
    published: ClassVar[str]  # a root that fetches the data set

    def __init__(
        self,
        root: str | None = None,
        size: int = 128,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        flip: bool = False,
        crop: float = 1.0,
        list_files: bool = False,
    ) -> None:
        super().__init__()
        if root == "":
            raise ValueError(
                f"data.init_args.root is empty. Name a folder of images, or null to draw demo {self.kind}."
            )
        if batch_size < 2:
            raise ValueError(
                f"data.init_args.batch_size is {batch_size}, must be 2 or more: BatchNorm cannot normalize one image."
            )
        for name, value, least in (("size", size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"data.init_args.{name} is {value}, must be {least} or more.")
        if not 0 < crop <= 1:
            raise ValueError(
                f"data.init_args.crop is {crop}, must be over 0, and at most 1, which trains on whole images."
            )
        self.save_hyperparameters()
        self.root, self.size, self.seed = root, size, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.flip, self.crop, self.list_files = flip, crop, list_files
        self.batches_of_checkpoint: dict[str, Any] | None = None
        self.beginning = (0, 0)  # epoch and batch

    @staticmethod
    @abstractmethod
    def draw_demo() -> Path:
        """Return the folder of the demo images, drawn on first use."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the images, drawn or downloaded on first use if ``root`` asks for it."""
        if self.root is None:
            return self.draw_demo()
        return fetch(self.root) if self.root.startswith("kaggle:") else Path(self.root)

    @cached_property
    def store(self) -> ImageStore:
        """The images, opened on first use; the first run to need them decodes them."""
        return self._open_store(self.size)

    @cached_property
    def larger_store(self) -> ImageStore:
        """The same images in the size that random parts are cut from."""
        return self._open_store(round(LARGER * self.size))

    def prepare_data(self) -> None:
        if self.root is None:
            rank_zero_info(
                f"Data: demo {self.kind}, drawn by this program. For real ones set --data.init_args.root to a folder "
                f"of images, or to {self.published}."
            )
        if self.list_files:
            for line in self.store.findings():
                rank_zero_info(shown(line))
        manifest = self.store.folder / MANIFEST_FILE
        rank_zero_info(f"Data: what became of each file is in {shown(manifest)}\n{self.store.summary()}")

    def setup(self, stage: str) -> None:
        num_processes, _ = self._processes()
        if stage == "fit":
            self._check_number("train", at_least=2 * num_processes)
        self._check_number("val" if stage in ("fit", "validate") else self._test_part(), at_least=num_processes)
        if stage == "fit" and self.crop < 1 and not self.state_dict()["overfit_batches"]:
            _ = self.larger_store  # now: from the sanity check on, a signal would wait for the next batch

    def begin_at(self, epoch: int, batch_idx: int) -> None:
        """Start training at a batch within an epoch, to resume a run that stopped there."""
        self.beginning = epoch, batch_idx

    def train_dataloader(self) -> DataLoader[Tensor]:
        older = {"overfit_batches": 0, "crop": 1.0, "size": self.size}  # what checkpoints used to leave out
        before, now = {**older, **(self.batches_of_checkpoint or {})}, self.state_dict()
        changed = [f"{key} {before.get(key)}, now {now[key]}" for key in now if now[key] != before.get(key)]
        if self.beginning[1] and changed:
            raise PigmentError(
                f"this checkpoint was saved mid-epoch with {', '.join(changed)}. Use the same, or start a new run."
            )
        images, varies = self.images("train"), not now["overfit_batches"]
        if self.crop < 1 and varies:
            images = Crops(self.larger_store, images.pinned, self.size, self.crop, self.seed)
        flip = self.flip and varies
        self.order = Order(images, *self._processes(), self.seed, self.batch_size, flip, self.beginning, shuffle=varies)
        # a last batch of one image is skipped, a different image each epoch
        return self._loader(
            images, batch_size=self.batch_size, sampler=self.order, drop_last=len(self.order) % self.batch_size == 1
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._evaluation_loader(self._test_part())

    def predict_dataloader(self) -> DataLoader[Tensor]:
        images = self.images(self._test_part())
        num_processes, rank = self._processes()
        return self._loader(images, batch_size=self.batch_size, sampler=range(rank, len(images), num_processes))

    def images(self, part: Part) -> "Images":
        """Return the images of a part, in the order of the manifest."""
        return Images(self.store, part, pinned=self._reads_ahead())

    def examples(self, part: Part, number: int) -> tuple[list[Path], Tensor]:
        """Return files and images (B, 3, S, S) in [0, 1] of up to ``number``, evenly spaced through a part."""
        images, paths = self.images(part), self.store.paths()
        indices = evenly_spaced(images, number)
        return [self.folder / paths[row] for row in images.rows[indices]], images.__getitems__(indices.tolist()) / 255

    def state_dict(self) -> dict[str, Any]:
        """Return everything that determines an epoch's batches."""
        trainer: Any = self.trainer
        batches = {name: getattr(self, name) for name in ("batch_size", "seed", "size", "flip", "crop")}
        batches["overfit_batches"] = trainer.overfit_batches if trainer else 0
        return {**batches, "processes": self._processes()[0], "images": len(self.store.rows["train"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches_of_checkpoint = state_dict

    def training_files(self, batch_idx: int) -> list[str]:
        """Return the paths, below ``folder``, of the images in a batch of this process's current epoch."""
        images: Any = self.order.dataset
        paths = images.store.paths()
        return [paths[images.rows[index]] for index in self.order.batch(batch_idx)]

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch.float().div_(255)  # bytes travel; floats are made on the device

    def _open_store(self, size: int) -> ImageStore:
        as_published = all((self.folder / part).is_dir() for part in self.layout)
        return open_store(self.folder, size, self.layout if as_published else None)

    def _check_number(self, part: Part, at_least: int) -> None:
        if len(self.store.rows[part]) < at_least:
            raise PigmentError(
                f"'{self.root}' has {sum(map(len, self.store.rows.values())):,} usable images, but only "
                f"{len(self.store.rows[part])} in {part}, which needs {at_least}. Add images (unless there "
                f"are folders {' and '.join(self.layout)}, a file's content decides its part), or see what became of "
                f"each: {self.store.folder / MANIFEST_FILE}"
            )

    def _test_part(self) -> Part:
        return "test" if len(self.store.rows["test"]) else "val"

    def _processes(self) -> tuple[int, int]:
        """Return the number of processes that train together, and this one's rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _feeds_gpu(self) -> bool:
        return self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)

    def _reads_ahead(self) -> bool:
        return self._feeds_gpu() and self.num_workers == 0  # workers cannot pin memory; the DataLoader does it for them

    def _evaluation_loader(self, part: Part) -> DataLoader[Tensor]:
        """Give each image to one process, and all the same number of batches, since they wait for each other."""
        images = self.images(part)
        num_processes, rank = self._processes()
        num_batches = math.ceil(len(images) / num_processes / self.batch_size)
        batches = np.array_split(np.arange(rank, len(images), num_processes), num_batches)
        return self._loader(images, batch_sampler=[batch.tolist() for batch in batches])

    def _loader(self, images: Dataset[Any], **order: Any) -> DataLoader[Any]:
        loader = ReadAhead if self._reads_ahead() else DataLoader
        return loader(
            images,
            num_workers=self.num_workers,
            worker_init_fn=leave_group,
            persistent_workers=self.num_workers > 0,
            collate_fn=as_it_is,
            pin_memory=self._feeds_gpu(),
            **order,
        )


class Images(Dataset[Tensor]):
    """The N images of one part of a store, in batches (B, 3, size, size) uint8.

    Index N + i is image i mirrored; adding 2 N changes nothing but what :class:`Crops` shows of an image.

    ``pinned`` batches lie in memory that a GPU can copy from while the CPU goes on; torch reuses this memory.
    """

    def __init__(self, store: ImageStore, part: Part, pinned: bool) -> None:
        self.store, self.rows, self.pinned = store, store.rows[part], pinned

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):  # ends a loop over all images
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        turns, places = np.divmod(indices, len(self.rows))
        images = torch.empty(len(indices), *self.store.pixels.shape[1:], dtype=torch.uint8, pin_memory=self.pinned)
        self.store.read(self.rows[places], images.numpy())
        for index in np.flatnonzero(turns % 2).tolist():
            images[index] = images[index].flip(1)
        return images.permute(0, 3, 1, 2)


class Crops(Images):
    """Random square parts of a store's training images, scaled to ``size``: a function of seed and index.

    Each part's side is at least the share ``smallest`` of the image's.
    """

    def __init__(self, store: ImageStore, pinned: bool, size: int, smallest: float, seed: int) -> None:
        super().__init__(store, "train", pinned)
        self.size, self.smallest, self.seed = size, smallest, seed

    def __getitems__(self, indices: list[int]) -> Tensor:
        whole = super().__getitems__(indices)
        parts = torch.empty(len(indices), self.size, self.size, 3, dtype=torch.uint8, pin_memory=self.pinned)
        parts = parts.permute(0, 3, 1, 2)
        for part, image, index in zip(parts, whole, indices, strict=True):
            draw = np.random.default_rng([self.seed, index]).integers
            side = draw(math.ceil(self.smallest * image.shape[1]), image.shape[1], endpoint=True)
            top, left = draw(image.shape[1] - side, size=2, endpoint=True).tolist()
            part.copy_(resized_crop(image, top, left, side, side, [self.size, self.size], InterpolationMode.BICUBIC))
        return parts


class Order(DistributedSampler[Any], SequentialSampler):  # overfit_batches would replace any other sampler
    """The order of the training images: a function of seed and epoch, never of history.

    If the images do not divide evenly among processes, the remainder is skipped, a different one each epoch. With
    ``flip``, some of the N indices have N added, which mirrors the image, and all have 2 N added for each epoch (see
    :class:`Images`). Without ``shuffle``, every epoch keeps the manifest's order.
    """

    def __init__(
        self,
        images: Images,
        num_processes: int,
        rank: int,
        seed: int,
        batch_size: int,
        flip: bool = False,
        beginning: tuple[int, int] = (0, 0),
        shuffle: bool = True,
    ) -> None:
        super().__init__(images, num_processes, rank, shuffle, seed, drop_last=True)
        self.batch_size, self.flip, self.beginning = batch_size, flip, beginning
        self.set_epoch(beginning[0])  # workers may read ahead before Lightning sets it

    def __iter__(self) -> Iterator[int]:
        epoch, batch_idx = self.beginning
        return islice(self._epoch(), batch_idx * self.batch_size if epoch == self.epoch else 0, None)

    def batch(self, batch_idx: int) -> list[int]:
        """Return which images are in a batch of the current epoch."""
        indices = islice(self._epoch(), batch_idx * self.batch_size, (batch_idx + 1) * self.batch_size)
        return [index % len(self.dataset) for index in indices]  # type: ignore[arg-type]

    def _epoch(self) -> Iterator[int]:
        num_images = len(self.dataset)  # type: ignore[arg-type]
        is_mirrored = np.random.default_rng([self.seed, self.epoch]).random(num_images) < (0.5 if self.flip else 0)
        return (index + num_images * (2 * self.epoch + int(is_mirrored[index])) for index in super().__iter__())


def in_batches(images: Images, device: torch.device, task: str) -> Iterator[Tensor]:
    """Yield all images of a part as batches (B, 3, S, S) in [0, 1] on a device; a progress bar names the task."""
    for indices in tqdm(torch.arange(len(images)).split(BATCH), task):
        yield images.__getitems__(indices.tolist()).to(device) / 255


def spread_out(images: Dataset[Tensor], number: int) -> Tensor:
    """Return up to ``number`` images, evenly spaced through a set: the same ones every time."""
    return torch.stack([images[index] for index in evenly_spaced(images, number).tolist()])


def evenly_spaced(images: Dataset[Tensor], number: int) -> Tensor:
    """Return the indices of up to ``number`` images, evenly spaced through a set."""
    size = len(images)  # type: ignore[arg-type]
    return torch.linspace(0, size - 1, min(number, size)).long()


def fetch(root: str) -> Path:
    """Download ``kaggle:owner/dataset/folder``, or find it in Kaggle's own cache, and return the folder."""
    owner, _, dataset_and_folder = root.removeprefix("kaggle:").partition("/")
    dataset, _, folder = dataset_and_folder.partition("/")
    if not (owner and dataset):
        raise PigmentError(f"'{root}' names no data set. Write kaggle:owner/dataset, or kaggle:owner/dataset/folder.")
    try:
        import kagglehub
    except ImportError:
        raise PigmentError(
            f"'{root}' is fetched by kagglehub, which is not installed: .venv/bin/pip install 'kagglehub>=0.3,<2'"
        ) from None
    try:
        return Path(kagglehub.dataset_download(f"{owner}/{dataset}"), folder)
    except Exception as error:  # kagglehub's errors share no base class
        raise PigmentError(
            f"Kaggle did not deliver '{root}': {error}. Or download it with a browser, and set root to its folder."
        ) from error
