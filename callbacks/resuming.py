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


class Interrupted(SystemExit):
    """A signal stops the program; the exit status is 128 and the signal's number, as in a shell."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle a signal where there is nothing to save."""
    raise Interrupted(signum)


class SaveLast(Checkpoint):
    """Keep ``checkpoints/last.ckpt``: after every epoch, now and then within one, and when SIGTERM or SIGINT comes.

    A signal ends the run between two batches of training or validation, once the checkpoint is written.

    Args:
        every_n_train_steps: save within epochs whenever the number of optimizer steps is a multiple of it.
        every_n_minutes: save within epochs when the last checkpoint is older.

    Raises:
        ValueError: if one of them is not positive.
        Interrupted: in training, by a signal.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value is not None and not value > 0:
                raise ValueError(f"SaveLast: {name} is {value}, needs over 0, or null for never.")
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.received = 0  # the number of a signal

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved, self.saved_at = position(trainer), time.monotonic()
        for partial in self.path.parent.glob(".*.ckpt.partial") if trainer.is_global_zero else ():
            partial.unlink()  # what a kill left
        with suppress(ValueError):  # outside the main thread there are no signals
            for signum in (signal.SIGINT, signal.SIGTERM):  # Lightning restores the old handlers when it is done
                signal.signal(signum, self._receive)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not at the end of the epoch before: by then its metrics were not logged yet
        self._save_or_stop(trainer, due=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning cannot go on right after a validation, for which it would count a step too many
        is_safe = batch_idx % (trainer.val_check_batch or trainer.num_training_batches) != 0
        if is_safe and batch_idx % trainer.accumulate_grad_batches == 0:
            minutes = (time.monotonic() - self.saved_at) / 60
            due = self.every_n_minutes is not None and minutes >= self.every_n_minutes
            due |= self.every_n_train_steps is not None and trainer.global_step % self.every_n_train_steps == 0
            self._save_or_stop(trainer, due)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_or_stop(trainer, due=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum

    def _save_or_stop(self, trainer: Trainer, due: bool) -> None:
        reason = self.received or int(due)  # 0 is none, 1 is due, more is a signal
        if trainer.world_size > 1:  # which may have received different things, and must agree
            wish = torch.tensor(reason, device=trainer.strategy.root_device)
            reason = int(trainer.strategy.reduce(wish, reduce_op="max"))
        if reason:
            self._save(trainer)
        if reason > 1:
            saved = f"The same command with --ckpt_path last goes on: {self.path}" if trainer.global_step else "Bye."
            rank_zero_info(f"{signal.Signals(reason).name}: stopped after step {trainer.global_step:,}. {saved}")
            raise Interrupted(reason)

    def _save(self, trainer: Trainer) -> None:
        if position(trainer) != self.saved and not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved, self.saved_at = position(trainer), time.monotonic()


def position(trainer: Trainer) -> tuple[int, int]:
    """Return the numbers of finished epochs and of optimizer steps."""
    return trainer.current_epoch, trainer.global_step


class ResumeExactly(Callback):
    """Make a run that goes on from a checkpoint end as the run that was never stopped.

    The random state is set anew for every batch, to a function of seed, epoch, batch and process, so that there is none
    to save. What checkpoints lack is added to them: the running means of the epoch's metrics, and the run's id.
    """

    def __init__(self) -> None:
        self.running_means: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = trainer.fit_loop.epoch_loop._results
        for key, saved in self.running_means.items():
            value, num_images = saved["sums"][trainer.global_rank].float().to(trainer.strategy.root_device)
            results.log(**saved["log"], value=value, sync_dist_fn=trainer.strategy.reduce, batch_size=1)
            results[key].value, results[key].cumulated_batch_size = value, num_images
            trainer._logger_connector._first_loop_iter = False  # or the next batch would reset them, as the first does
        self.running_means = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where seed_everything puts it
        place = np.random.SeedSequence([seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begun: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        begun.ready = begun.started = begun.completed  # of a validation that begins again

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run_id"] = Path(trainer.default_root_dir).name
        checkpoint["running_means"] = {
            key: {
                "log": {
                    **{name: getattr(metric.meta, name) for name in ("fx", "name", "prog_bar", "on_step", "on_epoch")},
                    "sync_dist": metric.meta.sync.should,
                },
                "sums": everyones(trainer, metric.value, metric.cumulated_batch_size),
            }
            for key, metric in trainer.fit_loop.epoch_loop._results.items()
            if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
        }
        loops = checkpoint["loops"]["fit_loop"]
        for name in ("epoch_progress", "epoch_loop.batch_progress"):
            total, current = loops[name]["total"], loops[name]["current"]
            if current["ready"] > current["started"] == current["completed"]:  # announced, but nothing is done of it
                total["ready"], current["ready"] = total["started"], current["started"]
                loops[name] |= {"is_last_batch": False} if "is_last_batch" in loops[name] else {}
        validation = loops["epoch_loop.val_loop.batch_progress"]
        if validation["current"]["ready"] > validation["current"]["completed"]:
            before = validation["total"]["completed"] - validation["current"]["completed"]
            for counts, done in ((validation["total"], before), (validation["current"], 0)):
                # it begins again, as its metrics are lost: to Lightning it has just started
                counts.update(ready=done + 1, started=done + 1, processed=done, completed=done)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.running_means = {
            key: saved
            for key, saved in checkpoint.get("running_means", {}).items()
            if len(saved["sums"]) == trainer.world_size  # other processes have seen other images
        }


def everyones(trainer: Trainer, value: Tensor, num_images: Tensor) -> Tensor:
    """Return (processes, 2): the sum of a metric over the images that each process has seen, and their number."""
    rows = torch.zeros(trainer.world_size, 2, dtype=torch.float64)  # holds both exactly
    rows[trainer.global_rank] = torch.stack([value.cpu(), num_images.cpu()])
    if trainer.world_size == 1:
        return rows
    return trainer.strategy.reduce(rows.to(trainer.strategy.root_device), reduce_op="sum").cpu()
