"""Any folder of images, as batches on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.judge import as_images, as_it_is, leave_group
from datamodules.store import MANIFEST_FILE, DataError, ImageStore, Part, open_store


class FolderDataModule(LightningDataModule, ABC):
    """Batches of RGB images (B, 3, size, size) in [0, 1], on the device: what every model here takes.

    A folder in the layout in which the data set is published is split as that says, with the validation images for
    the test too; any other is split 80 / 10 / 10 by the content of its files.

    Args:
        root: folder of the images; ``kaggle:owner/dataset/folder`` fetches it; None draws demo images.
        size: height and width of every image, in pixels: the shorter side is scaled to it, the longer cropped.
        batch_size: images in a batch, on each device; at least 2.
        num_workers: processes that read ahead; with 0 the training process reads, which a store is fast enough for.
        seed: with the epoch it decides the order of the training images.
        flip: mirror about half of the training images, other ones in each epoch.
        on_device: keep the pixels of all images, 3 * size**2 bytes each, in the device's memory.
        list_files: name the files that are left out, copies of others or nearly colorless, instead of only counting.

    Raises:
        ValueError: if a number is too small to work with, or ``root`` is empty.
        DataError: on setup, if ``root`` is not there or holds too few images.
    """

    layout: ClassVar[dict[str, Part]]  # the folder of each part, as published
    kind: ClassVar[str]  # what the images show
    published: ClassVar[str]  # a root that fetches the data set

    def __init__(
        self,
        root: str | None,
        size: int,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        flip: bool = False,
        on_device: bool = False,
        list_files: bool = False,
    ) -> None:
        super().__init__()
        if root == "":
            raise ValueError(
                f"data.init_args.root is empty. Name a folder of images, or null to draw demo {self.kind}."
            )
        if batch_size < 2:
            raise ValueError(
                f"data.init_args.batch_size is {batch_size}, needs 2 or more: BatchNorm cannot normalize one image."
            )
        if size < 1 or num_workers < 0 or seed < 0:
            raise ValueError(
                f"data.init_args: size is {size}, needs 1 or more; "
                f"num_workers is {num_workers} and seed is {seed}, need 0 or more."
            )
        self.save_hyperparameters()
        self.root, self.size, self.seed = root, size, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.flip, self.on_device, self.list_files = flip, on_device, list_files
        self.batches_of_checkpoint: dict[str, Any] | None = None

    @staticmethod
    @abstractmethod
    def draw_demo() -> Path:
        """Return the folder of the demo images, which are drawn if they are not there yet."""

    @cached_property
    def folder(self) -> Path:
        """Where the images are; they are drawn or fetched on first use, if that is asked for and not done yet."""
        if self.root is None:
            return self.draw_demo()
        return fetch(self.root) if self.root.startswith("kaggle:") else Path(self.root)

    @cached_property
    def store(self) -> ImageStore:
        """The images, opened on first use, or read and judged if nobody has done so yet."""
        as_published = all((self.folder / part).is_dir() for part in self.layout)
        return open_store(self.folder, self.size, self.layout if as_published else None)

    @cached_property
    def pixels(self) -> Tensor:
        """All of the store's pixels (N, 3, size, size) on the device.

        Raises:
            DataError: if they are too many for a GPU's memory.
        """
        trainer: Any = self.trainer
        try:
            return torch.tensor(self.store.pixels, device=trainer.strategy.root_device).permute(0, 3, 1, 2)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"The store's {self.store.pixels.nbytes / 1e9:.1f} GB do not fit into the device's memory. "
                "Set data.init_args.on_device to false."
            ) from error

    def prepare_data(self) -> None:
        if self.root is None:
            rank_zero_info(
                f"Data: demo {self.kind}, drawn by this program. For real ones set --data.init_args.root to a folder "
                f"of images, or to {self.published} (README, 'Real {self.kind}')."
            )
        for line in self.store.findings() if self.list_files else []:
            rank_zero_info(line)
        manifest = self.store.folder / MANIFEST_FILE
        rank_zero_info(f"Data: what became of each file is in {manifest}\n{self.store.summary()}")

    def setup(self, stage: str) -> None:
        num_processes, _ = self._processes()
        if stage == "fit":
            self._check_number("train", at_least=2 * num_processes)
        self._check_number("val" if stage in ("fit", "validate") else self._test_part(), at_least=num_processes)

    def train_dataloader(self) -> DataLoader[Any]:
        images = (FlippedImages if self.flip else Images)(self.store, "train", self.on_device)
        self.order = (FlippedOrder if self.flip else Order)(images, *self._processes(), self.seed, self.batch_size)
        if self.trainer:  # the start is set here: when Lightning calls set_epoch, workers have read ahead already
            loop: Any = self.trainer.fit_loop
            batch_idx = loop.epoch_loop.batch_progress.current.processed if loop.restarting else 0
            if batch_idx and self.batches_of_checkpoint != self.state_dict():
                raise DataError(
                    f"The checkpoint stands after {batch_idx} batches of an epoch with {self.batches_of_checkpoint}; "
                    f"now it is {self.state_dict()}. Go on with the same, or begin a new run."
                )
            self.order.begin(loop.epoch_progress.current.processed, batch_idx)
        # a last batch of one is left out, which in every epoch is another image
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
        """Return the images of a part, in the order of the manifest and not flipped."""
        return Images(self.store, part, self.on_device)

    def state_dict(self) -> dict[str, Any]:
        """Return what makes the batches of an epoch what they are."""
        batches = {"batch_size": self.batch_size, "seed": self.seed, "flip": self.flip}
        return {**batches, "processes": self._processes()[0], "images": len(self.store.rows["train"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches_of_checkpoint = state_dict

    def training_files(self, batch_idx: int) -> list[str]:
        """Return the paths, below ``folder``, of the images in a batch of the epoch that is running in this process."""
        paths = self.store.paths()
        return [paths[self.store.rows["train"][index]] for index in self.order.batch(batch_idx)]

    def test_files(self) -> list[str]:
        """Return the paths, below ``folder``, of the images that ``test`` and ``predict`` see."""
        paths = self.store.paths()
        return [paths[row] for row in self.store.rows[self._test_part()]]

    def on_after_batch_transfer(self, batch: Tensor | Sequence[Any], dataloader_idx: int) -> Tensor:
        images, flips = (batch, ()) if isinstance(batch, Tensor) else batch  # pinned, a tuple becomes a list
        if self.on_device:
            images = self.pixels[images]
        for index in flips:  # one by one: a CPU copies whole images faster than indexed ones
            images[index] = images[index].flip(-1)
        return images.float().div_(255)  # bytes travel; floats are made on the device

    def _check_number(self, part: Part, at_least: int) -> None:
        if len(self.store.rows[part]) < at_least:
            raise DataError(
                f"Of the {sum(map(len, self.store.rows.values())):,} images of '{self.root}' that can be used, "
                f"{len(self.store.rows[part])} fell to {part}, which needs {at_least}. Add images (without folders "
                f"named {' and '.join(self.layout)} their content decides where they fall), or see what became of "
                f"them: {self.store.folder / MANIFEST_FILE}"
            )

    def _test_part(self) -> Part:
        return "test" if len(self.store.rows["test"]) else "val"

    def _processes(self) -> tuple[int, int]:
        """Return the number of processes that train together, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _evaluation_loader(self, part: Part) -> DataLoader[Tensor]:
        """Deal each image to one process, and to all the same number of batches: they wait for each other in each."""
        images = self.images(part)
        num_processes, rank = self._processes()
        num_batches = math.ceil(len(images) / num_processes / self.batch_size)
        batches = np.array_split(np.arange(rank, len(images), num_processes), num_batches)
        return self._loader(images, batch_sampler=[batch.tolist() for batch in batches])

    def _loader(self, images: Dataset[Any], **order: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            num_workers=self.num_workers,
            worker_init_fn=leave_group,
            persistent_workers=self.num_workers > 0,
            collate_fn=as_it_is,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            **order,
        )


class Images(Dataset[Tensor]):
    """The images of one part of a store, in batches (B, 3, size, size) uint8, or their rows in the store, (B,)."""

    def __init__(self, store: ImageStore, part: Part, as_rows: bool) -> None:
        self.store, self.rows, self.as_rows = store, store.rows[part], as_rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        rows = self.rows[indices]
        return torch.from_numpy(rows) if self.as_rows else as_images(self.store.read(rows))


class FlippedImages(Images):
    """Images, and the indices of those that are to be flipped, which is done on the device."""

    def __getitems__(self, indices_and_flips: list[tuple[int, bool]]) -> tuple[Tensor, list[int]]:  # type: ignore[override]
        indices, flips = zip(*indices_and_flips, strict=True)
        return super().__getitems__(list(indices)), np.flatnonzero(flips).tolist()


class Order(DistributedSampler[Any]):
    """The order of the training images: a function of seed and epoch, and of nothing that happened before.

    Of a number of images that the processes cannot share evenly, the rest is left out, in every epoch another one.
    """

    def __init__(self, images: Images, num_processes: int, rank: int, seed: int, batch_size: int) -> None:
        super().__init__(images, num_processes, rank, seed=seed, drop_last=True)
        self.batch_size = batch_size
        self.begun = (0, 0)

    def begin(self, epoch: int, batch_idx: int) -> None:
        """Begin with a batch in the middle of an epoch."""
        self.set_epoch(epoch)
        self.begun = (epoch, batch_idx)

    def __iter__(self) -> Iterator[Any]:
        epoch, batch_idx = self.begun
        return islice(super().__iter__(), batch_idx * self.batch_size if epoch == self.epoch else 0, None)

    def batch(self, batch_idx: int) -> list[int]:
        """Return the indices of a batch in the epoch that was set."""
        return list(islice(super().__iter__(), batch_idx * self.batch_size, (batch_idx + 1) * self.batch_size))


class FlippedOrder(Order):
    """Yields each index with whether to flip its image: a function of seed, epoch and index."""

    def __iter__(self) -> Iterator[Any]:
        flips = np.random.default_rng([self.seed, self.epoch]).random(len(self.dataset)) < 0.5  # type: ignore[arg-type]
        return ((index, flips[index]) for index in super().__iter__())


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
