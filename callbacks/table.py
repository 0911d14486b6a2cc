"""A table in Weights & Biases of held-out images, what the model makes of them, and how close it comes."""

from typing import Any

import numpy as np
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from callbacks.media import last_step
from datamodules.folder import FolderDataModule

NUM_IMAGES = 100  # at most, each of at most so many pixels a side: a table stays within 5 MB
THUMBNAIL = 128


class LogTable(Callback):
    """In ``validate`` and ``test``, a table of held-out images, evenly spaced through the set, the worst first.

    Its columns are what the model's ``compare`` returns for the images and what its step made of them, and the path.
    A model or data module of another kind gets no table, and a line says so. If there are several processes, the first
    one shows some of its own images.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.columns: dict[str, list[Any]] = {}
        is_logged = any(isinstance(logger, WandbLogger) for logger in trainer.loggers)
        self.is_wanted = is_logged and trainer.is_global_zero and trainer.state.fn != "fit"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.is_wanted and not (hasattr(pl_module, "compare") and isinstance(data, FolderDataModule)):
            self.is_wanted = False
            name = type(pl_module).__name__
            rank_zero_info(f"LogTable: no table. It needs a FolderDataModule, and a method compare in {name}.")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add those images of a batch that are shown."""
        if not self.is_wanted:
            return
        loader = held_out(trainer)
        batches = [*loader.batch_sampler]
        num_images, first = sum(map(len, batches)), sum(map(len, batches[:batch_idx]))
        shown = np.linspace(0, num_images - 1, min(NUM_IMAGES, num_images)).astype(int) - first
        shown = shown[(shown >= 0) & (shown < len(batch))]
        if len(shown):
            compared = pl_module.compare(batch[shown], outputs[shown])
            for name, values in compared.items():
                column = values.tolist() if values.ndim == 1 else map(thumbnail, values.cpu())
                self.columns.setdefault(name, []).extend(column)
            self.columns.setdefault("path", []).extend(loader.dataset.rows[batches[batch_idx]][shown])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.columns:
            return
        paths = held_out(trainer).dataset.store.paths()  # once, as it reads the whole manifest
        self.columns["path"] = [paths[row] for row in self.columns["path"]]
        rows = [list(row) for row in zip(*self.columns.values(), strict=True)]
        if "PSNR" in self.columns:
            rows.sort(key=lambda row: row[[*self.columns].index("PSNR")])
        key = f"{'val' if trainer.validating else 'test'}/images"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table(key, [*self.columns], rows, step=last_step(trainer))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def held_out(trainer: Trainer) -> Any:
    """Return the loader of ``validate`` or ``test``."""
    return trainer.val_dataloaders if trainer.validating else trainer.test_dataloaders


def thumbnail(image: Tensor) -> wandb.Image:
    """Turn an image (3, H, W) in [0, 1] into a small JPEG."""
    picture = to_pil_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return wandb.Image(picture, file_type="jpg")
