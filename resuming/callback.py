"""Stop a run anywhere, and go on as if nothing had happened."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.folder import FolderDataModule
from epoch_means import EpochMean, LogsMeans
from resuming.lightning_internals import (
    begin_validation_again,
    is_accumulating,
    is_within_epoch,
    place_in_epoch,
    position,
    straighten_progress,
)
from resuming.loggers import ResumableCSVLogger
from system.signals import Interrupted, handle


class SaveLast(Checkpoint):
    """Keep ``checkpoints/last.ckpt``: after every epoch, now and then within one, and on SIGTERM or SIGINT.

    After an epoch means when the next one starts, or training ends: only then has Lightning logged its metrics.

    A signal ends the run at the next point that it can resume from: before most batches, in training and validation.

    Args:
        every_n_train_steps: within epochs, save whenever the number of optimizer steps is a multiple of this.
        every_n_minutes: within epochs, save when the last checkpoint is older than this (wall-clock time).

    Raises:
        ValueError: if one of them is not positive.
        Interrupted: in training, on a signal.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value is not None and not value > 0:
                raise ValueError(f"SaveLast: {name} is {value}, must be over 0, or null for never.")
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.signum = 0  # the signal received, if any
        self.has_validated = False  # since the last training batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        self.is_trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.partial"):  # left by a kill
                partial.unlink()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_or_stop(trainer, due=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # not right after a validation: a run that goes on from there would count one step too many
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0 and not self.has_validated:
            minutes = (time.monotonic() - self.saved_at) / 60
            due = self.every_n_minutes is not None and minutes >= self.every_n_minutes
            due |= self.every_n_train_steps is not None and trainer.global_step % self.every_n_train_steps == 0
            self._save_or_stop(trainer, due)
        self.has_validated = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and not is_accumulating(trainer):
            self._save_or_stop(trainer, due=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_validated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _listen(self, trainer: Trainer) -> None:
        """Take signals over from Lightning, whose handlers talk to other processes; it restores them when done."""
        self.saved, self.saved_at = position(trainer), time.monotonic()
        handle(self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def _save_or_stop(self, trainer: Trainer, due: bool) -> None:
        signum = self.signum
        if trainer.world_size > 1:  # if one process has to save or stop, all do
            ours = torch.tensor([due, signum], device=trainer.strategy.root_device)
            due, signum = trainer.strategy.reduce(ours, reduce_op="max").tolist()
        if due or signum:
            self._save(trainer)
        if signum:
            name, step = signal.Signals(signum).name, trainer.global_step
            how = f"Resume from there with --ckpt_path last: {self.path}" if step else "There is nothing to save yet."
            rank_zero_info(f"\n{name}: stopped after step {step:,}. {how}")  # below the progress bar
            raise Interrupted(signum, trainer.global_rank)

    def _save(self, trainer: Trainer) -> None:
        if position(trainer) != self.saved and not self.is_trial:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved, self.saved_at = position(trainer), time.monotonic()


class ResumeExactly(Callback):
    """Make a resumed run end exactly like one that was never stopped.

    Before every batch, the random state is set to a function of ``seed_everything`` (0 if unset), epoch, batch and
    process, so none has to be saved. The order of a :class:`datamodules.folder.FolderDataModule` starts where the
    checkpoint left off. Checkpoints also get what Lightning leaves out: the run's id, and the epoch's means so far of a
    :class:`epoch_means.LogsMeans`.
    """

    def __init__(self) -> None:
        self.epoch_sums: dict[str, Tensor] = {}  # from a checkpoint, until they are restored

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.rewind(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore_means(trainer, pl_module)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where seed_everything puts it
        place = np.random.SeedSequence([seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        batch_seed = int(place.generate_state(1, np.uint64)[0])
        # torch.manual_seed formats the call stack for every kind of device that is missing, which takes 1 ms
        torch.default_generator.manual_seed(batch_seed)
        device = trainer.strategy.root_device
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(batch_seed)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_means(trainer, pl_module)  # if only the validation of the epoch was left

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begin_validation_again(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run_id"] = Path(trainer.default_root_dir).name
        is_within = is_within_epoch(checkpoint)
        checkpoint["epoch_sums"] = (self.epoch_sums or epoch_sums(trainer, pl_module)) if is_within else {}
        straighten_progress(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, FolderDataModule) and trainer.state.fn == "fit":
            data.begin_at(*place_in_epoch(checkpoint))
        self.epoch_sums = {
            name: sums
            for name, sums in checkpoint.get("epoch_sums", {}).items()
            if len(sums) == trainer.world_size  # a different number of processes has seen different images
        }

    def _restore_means(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on with the checkpoint's means. If that came before the first batch, Lightning would log them as final."""
        for name, sums in self.epoch_sums.items():
            pl_module.add_to_mean(name, *sums[trainer.global_rank].to(pl_module.device))
        self.epoch_sums = {}


def epoch_sums(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
    """Return each training mean's sum over images and number of images so far, by process: (processes, 2)."""
    found: dict[str, Tensor] = {}
    if not isinstance(pl_module, LogsMeans):
        return found
    for name, mean in pl_module.means.items():
        if isinstance(mean, EpochMean) and name.startswith("train/"):
            sums = torch.zeros(trainer.world_size, 2, device=pl_module.device)
            sums[trainer.global_rank] = torch.stack([mean.total, mean.num_images])
            found[name] = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
    return found
