"""A progress bar that costs next to nothing."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

SECONDS = 0.5  # between two drawings


class ProgressBar(TQDMProgressBar):
    """Lightning's, drawn after the first and last step of an epoch, and in between at most twice a second.

    Drawing after every step takes 1.3 ms per step on a CPU, half of that in W&B, which captures the output. The bar
    shows the last step's loss; Lightning's ``prog_bar=True`` would wait for the device after every step.
    """

    loss: Tensor | None = None  # the last step's

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        if self.loss is not None:
            metrics["train/loss_step"] = self.loss.item() * trainer.accumulate_grad_batches
        return metrics

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self.on_train_epoch_start(trainer)  # a run resumed mid-epoch gets no other call

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.drawn = -math.inf

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = (outputs or {}).get("loss")  # a model may skip a step
        now = time.monotonic()
        if now - self.drawn >= SECONDS or batch_idx + 1 == trainer.num_training_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.drawn = now
