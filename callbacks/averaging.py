"""Weights averaged over the steps of training: better than the last ones."""

import itertools
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.nn.modules.batchnorm import _BatchNorm

from resuming.callback import share_statistics


class AverageWeights(WeightAveraging):
    """Average weights and BatchNorm's statistics exponentially; validation, checkpoints, and use take the average.

    The average forgets faster at the start: after n steps, its decay is n / (n + 10), until that exceeds ``decay``.

    Args:
        decay: how much of the average is left after a step, from 0 to less than 1.

    Raises:
        ValueError: if ``decay`` is anything else.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"AverageWeights: decay is {decay}, must be 0 or more, and less than 1.")
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where Lightning moves the model later
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let both models share what is not averaged: frozen weights, and buffers that are no statistics."""
        for name, module in self._average_model.module.named_modules():  # type: ignore[union-attr]
            current = pl_module.get_submodule(name)
            if not isinstance(current, _BatchNorm):
                module._buffers.update(current._buffers)
            weights = current.named_parameters(recurse=False)
            module._parameters.update({key: weight for key, weight in weights if not weight.requires_grad})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:
            self._update(pl_module, min(self.decay, self._latest_update_step / (self._latest_update_step + 10)))
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, pl_module: LightningModule, decay: float) -> None:
        """Average all tensors at once, which saves most of the time; torch's AveragedModel makes the host wait."""
        both = [self._average_model.module, pl_module]  # type: ignore[union-attr]
        tensors = (itertools.chain(model.parameters(), model.buffers()) for model in both)
        pairs = [pair for pair in zip(*tensors, strict=True) if pair[0] is not pair[1]]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, currents = map(list, zip(*floats, strict=True))
        torch._foreach_lerp_(averages, currents, 1 - decay)
        for count, current in pairs:
            if not count.is_floating_point():
                count.copy_(current)

    # the average is there a little longer than in Lightning: others fit samplers and draw pictures in its two hooks

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        share_statistics(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:  # otherwise Lightning warns, though the checkpoint's weights are averaged
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
