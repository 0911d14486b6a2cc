"""A table in Weights & Biases of held-out images, what the model makes of them, and how close it comes."""

from typing import Any

import numpy as np
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from callbacks.media import last_step

NUM_IMAGES = 100  # at most, each of at most so many pixels a side: a table stays within 5 MB
THUMBNAIL = 128


class LogTable(Callback):
    """In ``validate`` and ``test``, a table of held-out images, evenly spaced through the set, the worst first.

    Its columns are what the model's ``compare`` returns for the images and what its step made of them, and the path.
    Of several processes, the first one shows some of its own images.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.columns: dict[str, list[Any]] = {}

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "validate":
            self._add(trainer, pl_module, batch, outputs, batch_idx, trainer.val_dataloaders)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(trainer, pl_module, batch, outputs, batch_idx, trainer.test_dataloaders)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.columns:
            self._log(trainer, "val/images", trainer.val_dataloaders)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.columns:
            self._log(trainer, "test/images", trainer.test_dataloaders)

    def _add(
        self, trainer: Trainer, pl_module: Any, images: Tensor, results: Tensor, batch_idx: int, loader: Any
    ) -> None:
        """Add those images of a batch that are shown."""
        if not (trainer.is_global_zero and any(isinstance(logger, WandbLogger) for logger in trainer.loggers)):
            return
        batches = [*loader.batch_sampler]
        num_images, first = sum(map(len, batches)), sum(map(len, batches[:batch_idx]))
        shown = np.linspace(0, num_images - 1, min(NUM_IMAGES, num_images)).astype(int) - first
        shown = shown[(shown >= 0) & (shown < len(images))]
        if len(shown):
            compared = pl_module.compare(images[shown], results[shown])
            for name, values in compared.items():
                column = values.tolist() if values.ndim == 1 else map(thumbnail, values.cpu())
                self.columns.setdefault(name, []).extend(column)
            self.columns.setdefault("path", []).extend(loader.dataset.rows[batches[batch_idx]][shown])

    def _log(self, trainer: Trainer, key: str, loader: Any) -> None:
        paths = loader.dataset.store.paths()  # once, as it reads the whole manifest
        self.columns["path"] = [paths[row] for row in self.columns["path"]]
        by = [*self.columns].index("PSNR")
        rows = sorted(map(list, zip(*self.columns.values(), strict=True)), key=lambda row: row[by])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table(key, [*self.columns], rows, step=last_step(trainer))


def thumbnail(image: Tensor) -> wandb.Image:
    """Turn an image (3, H, W) in [0, 1] into a small JPEG."""
    picture = to_pil_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return wandb.Image(picture, file_type="jpg")
