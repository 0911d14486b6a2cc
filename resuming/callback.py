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
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from datamodules.folder import FolderDataModule
from epoch_means import EpochMean, LogsMeans
from resuming.lightning_internals import (
    SaveBest,
    averages_weights,
    begin_validation_again,
    has_ended_early,
    has_stopped,
    is_accumulating,
    is_epoch_open,
    is_within_epoch,
    leave_epochs_open,
    place_in_epoch,
    position,
    settle_ddp,
    straighten_progress,
    take_over_signals,
)
from resuming.loggers import ResumableCSVLogger
from system.atomic import link
from system.errors import shown
from system.signals import Interrupted, handle

ASK_SECONDS = 1.0  # between two times that processes ask each other whether to stop
MAX_SHARE = 1 / 30  # the largest share of the time that saving between epochs may take
MAX_WAITING = 3  # checkpoints that each SaveBest may hold in memory until they are written


class SaveLast(Checkpoint):
    """Keep ``checkpoints/last.ckpt``: after epochs, now and then within one, at the end, and on SIGTERM or SIGINT.

    A run may end within an epoch, if ``max_steps``, ``max_time``, or a callback stops it there.

    After an epoch means when the next one starts, or training ends: only then has Lightning logged its metrics. When
    the next one starts, nothing is saved if that would take more than 1/30 of the time since the last checkpoint,
    unless too many checkpoints of a SaveBest wait in memory.

    A signal ends the run at the next point that it can resume from: before most batches, in training and validation.
    Several processes ask each other about once a second whether one of them has received a signal.

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
        self.save_seconds = 0.0  # how long the last save took

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        self.is_trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        self.bests = [one for one in trainer.checkpoint_callbacks if isinstance(one, SaveBest)]
        for best in self.bests:
            best.follows_save_last = not self.is_trial
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.partial"):  # left by a kill
                partial.unlink()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_or_stop(trainer, is_between=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            every = self.every_n_train_steps
            self._save_or_stop(trainer, due=every is not None and trainer.global_step % every == 0)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and not is_accumulating(trainer) and not averages_weights(trainer):
            self._save_or_stop(trainer, due=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if is_epoch_open(trainer) and not self.is_trial:
            rank_zero_info(
                f"\nStopped within epoch {trainer.current_epoch}, after step {trainer.global_step:,}. "
                f"To go on, raise the limit that stopped it, and resume with --ckpt_path last: {shown(self.path)}"
            )

    def _listen(self, trainer: Trainer) -> None:
        """Take signals over from Lightning, whose handlers talk to other processes; it restores them when done."""
        self.saved, self.saved_at = position(trainer), time.monotonic()
        self.begun_from = trainer.ckpt_path  # until a checkpoint is saved
        self.num_calls, self.asked_at, self.ask_every = 0, self.saved_at, 0.0
        take_over_signals(trainer)
        handle(self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def _save_or_stop(self, trainer: Trainer, due: bool = False, is_between: bool = False) -> None:
        is_old, signum = self._agree(trainer, due or is_between, is_between)
        if due or is_old or signum:
            self._save(trainer)
        elif is_between:
            for best in self.bests:
                best.hold(trainer)
        if signum:
            name, step = signal.Signals(signum).name, trainer.global_step
            where = self.begun_from or f"last: {self.path}"
            how = f"Resume from there with --ckpt_path {shown(where)}" if step else "There is nothing to save yet."
            rank_zero_info(f"\n{name}: stopped after step {step:,}. {how}")  # below the progress bar
            raise Interrupted(signum, trainer.global_rank)

    def _agree(self, trainer: Trainer, at_once: bool, is_between: bool) -> tuple[bool, int]:
        """Return whether the last checkpoint is too old, and the signal received, or 0; all processes get the same.

        Asking makes processes wait for each other. So they ask about once a second: they all count calls, and the
        slowest one's pace says after how many to ask again, but at most after twice as many as the last time, since a
        validation's pace is not training's.
        """
        now = time.monotonic()
        age = now - self.saved_at
        is_old = self.every_n_minutes is not None and age >= 60 * self.every_n_minutes
        is_full = any(len(best.waiting.keys() - set(best.superseded)) > MAX_WAITING for best in self.bests)
        is_old |= is_between and (is_full or age * MAX_SHARE >= self.save_seconds)
        if trainer.world_size == 1:
            return is_old, self.signum
        self.num_calls += 1
        if not at_once and self.num_calls < self.ask_every:
            return False, 0
        seconds = (now - self.asked_at) / self.num_calls
        ours = torch.tensor([is_old, self.signum, seconds], device=trainer.strategy.root_device)
        is_old, signum, seconds = trainer.strategy.reduce(ours, reduce_op="max").tolist()
        self.ask_every = 1 if at_once else min(ASK_SECONDS / seconds, 2 * self.num_calls)
        self.num_calls, self.asked_at = 0, now
        return bool(is_old), int(signum)

    def _save(self, trainer: Trainer) -> None:
        if position(trainer) == self.saved or self.is_trial:
            return
        begun = time.monotonic()
        present = [path for best in self.bests for path in best.write(trainer)]
        if not present:
            trainer.save_checkpoint(self.path, weights_only=False)
        elif trainer.is_global_zero:
            link(Path(present[0]), self.path)
        for best in self.bests:
            best.remove_superseded(trainer)
        self.saved, self.saved_at, self.begun_from = position(trainer), time.monotonic(), None
        self.save_seconds = self.saved_at - begun


class ResumeExactly(Callback):
    """Make a resumed run end exactly like one that was never stopped.

    Before every batch, the random state is set to a function of ``seed_everything`` (0 if unset), epoch, batch and
    process, so none has to be saved. The order of a :class:`datamodules.folder.FolderDataModule` starts where the
    checkpoint left off. Checkpoints also get what Lightning leaves out: the run's id, and the epoch's means so far of a
    :class:`epoch_means.LogsMeans`.

    If a run stops within an epoch, the epoch stays open. A run that EarlyStopping ended needs more patience to go on.
    """

    def __init__(self) -> None:
        self.epoch_sums: dict[str, Tensor] = {}  # from a checkpoint, until they are restored
        self.run_id: str | None = None  # from a checkpoint; the folder's name may have changed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        leave_epochs_open(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.rewind(trainer.global_step)
        ddp = trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel):
            ddp.broadcast_buffers = False  # otherwise the first process sends its own in every step
            settle_ddp(ddp)

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
        share_statistics(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run_id"] = self.run_id or Path(trainer.default_root_dir).name
        is_within = is_within_epoch(checkpoint)
        checkpoint["epoch_sums"] = (self.epoch_sums or epoch_sums(trainer, pl_module)) if is_within else {}
        checkpoint["should_stop"], checkpoint["early_stopping"] = trainer.should_stop, limits(trainer)
        straighten_progress(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.run_id = checkpoint.get("run_id")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, FolderDataModule) and trainer.state.fn == "fit":
            data.begin_at(*place_in_epoch(checkpoint))
        self._restore_stop(trainer, checkpoint)
        self.epoch_sums = {
            name: sums
            for name, sums in checkpoint.get("epoch_sums", {}).items()
            if len(sums) == trainer.world_size  # a different number of processes has seen different images
        }

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for early in trainer.early_stopping_callbacks:
            if has_ended_early(trainer) and has_stopped(early):
                why, remedy = "passed a limit", "change that limit"
                if early.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
                    most = max(early.patience, early.wait_count)  # it went on counting if min_epochs was not reached
                    why, remedy = "stopped improving", f"set its patience to more than {most}"
                rank_zero_info(f"EarlyStopping ended this run because {early.monitor} {why}. To go on, {remedy}.")

    def _restore_stop(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Stop if the run had to when it was saved, unless EarlyStopping has other limits now and would not have."""
        is_changed = checkpoint.get("early_stopping") != limits(trainer)
        trainer.should_stop = not is_changed and checkpoint["should_stop"]
        for early in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(early.state_key):
                state["patience"] = early.patience  # otherwise Lightning restores the checkpoint's
                if is_changed:
                    is_exhausted = 0 < state["wait_count"] >= early.patience
                    reason = EarlyStoppingReason.PATIENCE_EXHAUSTED if is_exhausted else EarlyStoppingReason.NOT_STOPPED
                    state["stopping_reason"] = reason.value
                    trainer.should_stop |= is_exhausted

    def _restore_means(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on with the checkpoint's means. If that came before the first batch, Lightning would log them as final."""
        for name, sums in self.epoch_sums.items():
            pl_module.add_to_mean(name, *sums[trainer.global_rank].to(pl_module.device))
        self.epoch_sums = {}


def share_statistics(trainer: Trainer, pl_module: LightningModule) -> None:
    """Let all processes use the first one's BatchNorm statistics, which checkpoints hold."""
    if trainer.world_size > 1:
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                for statistic in module.buffers():
                    torch.distributed.broadcast(statistic, src=0)


def limits(trainer: Trainer) -> list[list[Any]]:
    """Return the settings that decide when EarlyStopping stops a run."""
    return [
        [early.patience, early.stopping_threshold, early.divergence_threshold, early.check_finite]
        for early in trainer.early_stopping_callbacks
    ]


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
