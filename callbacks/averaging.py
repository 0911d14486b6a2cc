"""Weights averaged over the steps of training: better than the last ones."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from resuming.callback import share_statistics


class AverageWeights(WeightAveraging):
    """Average weights and BatchNorm's statistics exponentially; validation, checkpoints, and use take the average.

    The average forgets faster at the start: after n steps, its decay is n / (n + 10), as long as ``decay`` is more.

    Args:
        decay: how much of the average is left after a step, from 0 to less than 1.

    Raises:
        ValueError: if ``decay`` is anything else.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"AverageWeights: decay is {decay}, must be 0 or more, and less than 1.")
        super().__init__(avg_fn=self._average)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where Lightning moves the model later
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let both models share the buffers that are no statistics, as these are exact."""
        for name, module in self._average_model.module.named_modules():  # type: ignore[union-attr]
            if not isinstance(module, _BatchNorm):
                module._buffers.update(pl_module.get_submodule(name)._buffers)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        share_statistics(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # otherwise Lightning warns, though the checkpoint's weights are averaged
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _average(self, average: Tensor, current: Tensor, num_averaged: Tensor) -> Tensor:
        if not average.is_floating_point():
            return current  # a number of batches
        decay = (num_averaged / (num_averaged + 10)).clamp(max=self.decay)
        return average.lerp(current, 1 - decay.to(average.dtype))
