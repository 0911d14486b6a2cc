"""Stop a run anywhere, and go on as if nothing had happened."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.loggers import ResumableCSVLogger
from evaluation import LogsMeans


class Interrupted(SystemExit):
    """A signal stops the program; the first process exits with 128 + its number, as in a shell, the others with 0."""

    def __init__(self, signum: int, rank: int = 0) -> None:
        # the launcher kills the first process 5 s after another has failed, be it busy with its last pictures
        super().__init__(128 + signum if rank == 0 else 0)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle a signal where there is nothing to save."""
    raise Interrupted(signum)


class SaveLast(Checkpoint):
    """Keep ``checkpoints/last.ckpt``: after every epoch, now and then within one, and when SIGTERM or SIGINT comes.

    A signal ends the run at the next moment from which it can go on: before most batches, training or validation.

    Args:
        every_n_train_steps: save within epochs whenever the number of optimizer steps is a multiple of it.
        every_n_minutes: of wall-clock time; save within epochs when the last checkpoint is older.

    Raises:
        ValueError: if one of them is not positive.
        Interrupted: in training, by a signal.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value is not None and not value > 0:
                raise ValueError(f"SaveLast: {name} is {value}, needs over 0, or null for never.")
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.signum = 0  # of a signal that was received
        self.has_validated = False  # since the last training batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        self.is_trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        for partial in self.path.parent.glob(".*.partial") if trainer.is_global_zero else ():  # what a kill left
            partial.unlink()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not at the end of the epoch before, whose metrics were not logged by then
        self._save_or_stop(trainer, due=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # right after a validation Lightning would count a step too many when it goes on
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0 and not self.has_validated:
            minutes = (time.monotonic() - self.saved_at) / 60
            due = self.every_n_minutes is not None and minutes >= self.every_n_minutes
            due |= self.every_n_train_steps is not None and trainer.global_step % self.every_n_train_steps == 0
            self._save_or_stop(trainer, due)
        self.has_validated = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.fit_loop._should_accumulate():
            self._save_or_stop(trainer, due=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_validated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _listen(self, trainer: Trainer) -> None:
        """Handle signals instead of Lightning, which would talk to other processes from within the handler."""
        self.saved, self.saved_at = position(trainer), time.monotonic()
        with suppress(ValueError):  # outside the main thread there are no signals
            for signum in (signal.SIGINT, signal.SIGTERM):  # Lightning restores the old handlers when it is done
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def _save_or_stop(self, trainer: Trainer, due: bool) -> None:
        signum = self.signum
        if trainer.world_size > 1:  # which must do the same, whichever has received the signal or finds that it is time
            ours = torch.tensor([due, signum], device=trainer.strategy.root_device)
            due, signum = trainer.strategy.reduce(ours, reduce_op="max").tolist()
        if due or signum:
            self._save(trainer)
        if signum:
            name, step = signal.Signals(signum).name, trainer.global_step
            how = f"--ckpt_path last goes on from there: {self.path}" if step else "There is nothing to save yet."
            rank_zero_info(f"\n{name}: stopped after step {step:,}. {how}")  # below the progress bar
            raise Interrupted(signum, trainer.global_rank)

    def _save(self, trainer: Trainer) -> None:
        if position(trainer) != self.saved and not self.is_trial:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved, self.saved_at = position(trainer), time.monotonic()


def position(trainer: Trainer) -> tuple[int, int]:
    """Return the numbers of finished epochs and of training batches."""
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.total.completed


class ResumeExactly(Callback):
    """Make a run that goes on from a checkpoint end as the run that was never stopped.

    The random state is set anew for every batch, to a function of ``seed_everything`` (or else 0), epoch, batch and
    process, so that there is none to save. What checkpoints lack is added to them: the run's id, and the epoch's means
    up to now, of a model that is a :class:`evaluation.LogsMeans`.
    """

    def __init__(self) -> None:
        self.epoch_sums: dict[str, Tensor] = {}  # of a checkpoint, until they are restored

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.rewind(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore_means(trainer, pl_module)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where seed_everything puts it
        place = np.random.SeedSequence([seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        batch_seed = int(place.generate_state(1, np.uint64)[0])
        # not by torch.manual_seed, which formats the call stack for every kind of device that is not there: 1 ms
        torch.default_generator.manual_seed(batch_seed)
        device = trainer.strategy.root_device
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(batch_seed)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_means(trainer, pl_module)  # of an epoch of which only the validation was left

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begun: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        begun.ready = begun.started = begun.completed  # of a validation that begins again

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run_id"] = Path(trainer.default_root_dir).name
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]
        is_within = epochs["started"] > epochs["processed"]
        checkpoint["epoch_sums"] = (self.epoch_sums or epoch_sums(trainer, pl_module)) if is_within else {}
        mend_progress(loops)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.epoch_sums = {
            name: sums
            for name, sums in checkpoint.get("epoch_sums", {}).items()
            if len(sums) == trainer.world_size  # other processes have seen other images
        }

    def _restore_means(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on with the means of the checkpoint: not before a batch, or Lightning would hold them for final."""
        for name, sums in self.epoch_sums.items():
            pl_module.add_to_mean(name, *sums[trainer.global_rank].to(pl_module.device))
        self.epoch_sums = {}


def epoch_sums(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
    """Return for each mean of the training epoch, (processes, 2), each process's sum over images and their number."""
    found = {}
    for name, mean in pl_module.means.items() if isinstance(pl_module, LogsMeans) else ():
        if name.startswith("train/"):
            sums = torch.zeros(trainer.world_size, 2, device=pl_module.device)
            sums[trainer.global_rank] = torch.stack([mean.total, mean.num_images])
            found[name] = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
    return found


def mend_progress(loops: dict[str, Any]) -> None:
    """Change the counters in a checkpoint to what Lightning's loops take for a place between two batches."""
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    for progress in (epochs, batches):
        total, current = progress["total"], progress["current"]
        if current["ready"] > current["started"] == current["completed"]:  # announced, but nothing is done of it
            total["ready"], current["ready"] = total["started"], current["started"]
            if progress is batches:
                batches["is_last_batch"] = False  # which was that of the batch announced
    if epochs["current"]["ready"] == epochs["current"]["completed"]:  # else max_steps would skip an epoch
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    if validation["current"]["ready"] > validation["current"]["completed"]:
        # it begins again, as its metrics are lost: to Lightning it has just started
        before = validation["total"]["completed"] - validation["current"]["completed"]
        for counts, done in ((validation["total"], before), (validation["current"], 0)):
            counts.update(ready=done + 1, started=done + 1, processed=done, completed=done)
