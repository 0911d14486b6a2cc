"""Everything that relies on Lightning 2.6's internals, with the reasons: what a new release may break is here."""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.trainer.call import _call_callback_hooks, _call_lightning_module_hook, _call_strategy_hook
from torch.distributed import Store
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DistributedDataParallel

from system.errors import PigmentError


def position(trainer: Trainer) -> tuple[int, int, bool]:
    """Return the numbers of finished epochs and training batches, and ``should_stop``.

    Together they tell whether a checkpoint is stale. ``global_step`` would not do, as it stands still while gradients
    accumulate.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.total.completed, trainer.should_stop


def settle_ddp(ddp: DistributedDataParallel) -> None:
    """Make DDP fix the order in which it sums gradients before the first step, not after it.

    DDP packs gradients into buckets. After the first backward pass, it packs them again, in the order in which they
    came. A resumed run would start with the first packing again, and with three or more processes the rounding of a sum
    depends on the packing. A backward pass of zeros, the last weights first, gives every run its final packing before
    the first step.

    This does nothing under two of DDP's options: with ``find_unused_parameters`` it never packs again, and with
    ``static_graph`` it learns the graph from the first backward pass.
    """
    if ddp.find_unused_parameters or ddp.static_graph:
        return
    weights = [weight for weight in ddp.parameters() if weight.requires_grad]
    ddp.reducer.prepare_for_backward([])  # as at the end of a forward pass
    torch.stack([weight.sum() * 0 for weight in weights]).sum().backward()
    for weight in weights:
        weight.grad = None


def shared_store() -> Store:
    """Return the key-value store that the processes of a run share; PyTorch has no public name for it."""
    return _get_default_store()


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """Return what tells a process which one it is, as Lightning has chosen it."""
    return trainer._accelerator_connector.cluster_environment


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients are waiting for more batches to add to them; no checkpoint holds them, so none can resume here.

    Only Lightning knows how ``accumulate_grad_batches`` and the last batch of an epoch affect this.
    """
    return trainer.fit_loop._should_accumulate()


def averages_weights(trainer: Trainer) -> bool:
    """Whether a validation may see other weights than training, so that none may be saved in the middle of it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(one, WeightAveraging | StochasticWeightAveraging) for one in callbacks)


def take_over_signals(trainer: Trainer) -> None:
    """Keep Lightning from asking all processes before every step whether one of them has received SIGTERM."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class FitLoop(_FitLoop):
    """Leaves an epoch open if it stopped before its last batch; Lightning would log its means and count it as done."""

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:  # under max_steps, Lightning would go on within a finished epoch
        epochs: Any = self.epoch_progress.current
        _Loop.restarting.fset(self, restarting and epochs.started > epochs.processed)  # type: ignore[attr-defined]

    def on_advance_start(self) -> None:
        if self.restarted_mid_epoch:  # Lightning skips this hook, in which these two set up the epoch
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
                    callback.on_train_epoch_start(self.trainer, self.trainer.lightning_module)
        super().on_advance_start()

    def on_advance_end(self) -> None:
        if not self.epoch_loop._num_ready_batches_reached():
            raise StopIteration  # ends training as usual
        self._restarting &= not self.epoch_loop.val_loop._has_run  # else a resumed epoch skips ReduceLROnPlateau
        super().on_advance_end()

    def on_run_end(self) -> None:
        trainer = self.trainer
        # a stop by EarlyStopping lasts, and so does one that has to wait; any other has had its effect
        trainer.should_stop &= not self._can_stop_early or any(map(has_stopped, trainer.early_stopping_callbacks))
        # save first: callbacks that average weights now put the average into the model
        _call_callback_hooks(trainer, "on_train_end", monitoring_callbacks=True)
        _call_callback_hooks(trainer, "on_train_end", monitoring_callbacks=False)
        _call_lightning_module_hook(trainer, "on_train_end")
        _call_strategy_hook(trainer, "on_train_end")


class EpochLoop(_TrainingEpochLoop):
    """Stops and resumes only between optimizer steps, and adds no validation."""

    @property
    def done(self) -> bool:
        return super().done and not self._should_accumulate()  # no checkpoint holds gradients

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.restarting and not self.val_loop.restarted_mid_evaluation:
            if self._num_ready_batches_reached():
                raise StopIteration  # only the end of the epoch is left
            self.restarting = False  # else, after a validation, Lightning would count one step too many
        super().advance(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        should_stop, self.trainer.should_stop = self.trainer.should_stop, False  # else it adds a validation
        is_due = super()._should_check_val_fx(data_fetcher)
        self.trainer.should_stop = should_stop
        return is_due


def leave_epochs_open(trainer: Trainer) -> None:
    """Let a run resume within an epoch if ``max_steps``, ``max_time``, or a callback stopped it there."""
    trainer.fit_loop.__class__ = FitLoop
    trainer.fit_loop.epoch_loop.__class__ = EpochLoop


def has_stopped(early: EarlyStopping) -> bool:
    """Whether EarlyStopping has asked for a stop, which ``min_epochs`` or ``min_steps`` may delay."""
    return early.stopping_reason is not EarlyStoppingReason.NOT_STOPPED


def has_ended_early(trainer: Trainer) -> bool:
    """Whether ``should_stop`` has ended the run: ``min_epochs`` and ``min_steps`` allow it to."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def is_epoch_open(trainer: Trainer) -> bool:
    """Whether an epoch has started but not finished."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return epochs.started > epochs.processed


def begin_validation_again(trainer: Trainer) -> None:
    """Uncount a validation that was cut short: its metrics are lost, and it starts from its first batch."""
    begun: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    begun.ready = begun.started = begun.completed


def place_in_epoch(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return the epoch in which a checkpoint was saved, and how many of its batches were trained on.

    The order of the images needs both before Lightning's loops start, as workers read ahead.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]["current"]["processed"]  # after an epoch Lightning does not reset it
    return loops["epoch_progress"]["current"]["processed"], batches if is_within_epoch(checkpoint) else 0


def finished_epochs(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that were finished when a checkpoint was saved."""
    return place_in_epoch(checkpoint)[0]


def is_within_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved in an epoch that had started but not finished."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return epochs["started"] > epochs["processed"]


def straighten_progress(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint's counters so that Lightning's loops resume between two batches.

    Lightning counts a batch or an epoch when it announces it; a run saved right then would skip it on resuming.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    for progress in (epochs, batches):
        total, current = progress["total"], progress["current"]
        if current["ready"] > current["started"] == current["completed"]:  # announced, but not begun
            total["ready"], current["ready"] = total["started"], current["started"]
            if progress is batches:
                batches["is_last_batch"] = False  # it was set for the batch announced
    validation = loops["epoch_loop.val_loop.batch_progress"]
    if validation["current"]["ready"] > validation["current"]["completed"]:
        # its metrics are lost, so it starts over: to Lightning it has just begun
        before = validation["total"]["completed"] - validation["current"]["completed"]
        for counts, done in ((validation["total"], before), (validation["current"], 0)):
            counts.update(ready=done + 1, started=done + 1, processed=done, completed=done)
    elif batches["current"]["processed"] == batches["current"]["completed"]:
        # right after a validation, Lightning has not counted the step yet
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]


def leave_config_alone(cli: Any) -> None:
    """Stand in for ``LightningCLI._parse_ckpt_path``, which lets a checkpoint silently override the user's settings."""


class SaveBest(ModelCheckpoint):
    """Keep the best checkpoint as ModelCheckpoint does, but write it only when SaveLast writes ``last.ckpt``.

    If the best epoch is also the last, both checkpoints are then one file. Until it is written, the best checkpoint
    waits in memory, on the device. A run that is killed meanwhile resumes from an earlier ``last.ckpt``, and makes the
    best checkpoint again on its way.

    Lightning would save before an epoch's metrics are logged. This class saves when the next epoch starts, as
    :class:`resuming.callback.SaveLast` does. If an epoch has several validations, a best checkpoint from within it is
    still written at once, and so are all without a SaveLast.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.follows_save_last = False  # as its setup says
        self.is_epoch_over = False
        self.waiting: dict[str, dict[str, Any] | None] = {}  # checkpoints by path; None until the next epoch starts
        self.superseded: list[str] = []  # paths

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__name__, ModelCheckpoint.__name__)  # as in older checkpoints

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_epoch_over = True
        super().on_train_epoch_end(trainer, pl_module)
        self.is_epoch_over = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        with suppress(PigmentError):  # the disk may be full, which is what the exception says
            for path, checkpoint in self.waiting.items():
                if checkpoint is not None:
                    trainer.strategy.save_checkpoint(checkpoint, path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Find the best again if the path of the run's folder has changed; Lightning would forget it."""

        def moved(path: str) -> str:
            return path and str(Path(self.dirpath or "", Path(path).name))

        if Path(moved(state_dict["best_model_path"])).is_file():
            paths = {name: moved(path) for name, path in state_dict.items() if name.endswith("_model_path")}
            best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    def hold(self, trainer: Trainer) -> None:
        """Copy the present state if it is the best, to be written later."""
        self._forget_superseded()
        if None in self.waiting.values():
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=self.save_weights_only)
            copy = deepcopy(checkpoint) if trainer.is_global_zero else {}
            self.waiting = {path: copy if held is None else held for path, held in self.waiting.items()}

    def write(self, trainer: Trainer) -> list[str]:
        """Write what waits, and return the checkpoints that hold the whole present state."""
        self._forget_superseded()
        for path, checkpoint in self.waiting.items():
            if checkpoint is None:
                super()._save_checkpoint(trainer, path)
                continue
            trainer.strategy.save_checkpoint(checkpoint, path)
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.after_save_checkpoint(proxy(self))  # as Lightning does when it saves
        present = [path for path, checkpoint in self.waiting.items() if checkpoint is None]
        self.waiting = {}
        return [] if self.save_weights_only else present

    def remove_superseded(self, trainer: Trainer) -> None:
        """Remove what better checkpoints replace, once ``last.ckpt`` no longer names it as the best."""
        for path in self.superseded:
            trainer.strategy.remove_checkpoint(path)
        self.superseded = []

    def _forget_superseded(self) -> None:
        for path in self.superseded:
            self.waiting.pop(path, None)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self.is_epoch_over and self.follows_save_last:
            self.waiting[filepath] = None
        else:
            super()._save_checkpoint(trainer, filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self.follows_save_last:
            self.superseded.append(filepath)
        else:
            super()._remove_checkpoint(trainer, filepath)
