"""Everything that relies on Lightning 2.6's internals, with the reasons: what a new release may break is here."""

from typing import Any

from lightning.pytorch import Trainer


def position(trainer: Trainer) -> tuple[int, int]:
    """Return the numbers of finished epochs and training batches: together they tell whether a checkpoint is stale.

    ``global_step`` would not do, as it stands still while gradients accumulate.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.total.completed


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients are waiting for more batches to add to them; no checkpoint holds them, so none can resume here.

    Only Lightning knows how ``accumulate_grad_batches`` and the last batch of an epoch affect this.
    """
    return trainer.fit_loop._should_accumulate()


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
    if epochs["current"]["ready"] == epochs["current"]["completed"]:  # else max_steps would skip an epoch
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    if validation["current"]["ready"] > validation["current"]["completed"]:
        # its metrics are lost, so it starts over: to Lightning it has just begun
        before = validation["total"]["completed"] - validation["current"]["completed"]
        for counts, done in ((validation["total"], before), (validation["current"], 0)):
            counts.update(ready=done + 1, started=done + 1, processed=done, completed=done)


def leave_config_alone(cli: Any) -> None:
    """Stand in for ``LightningCLI._parse_ckpt_path``, which lets a checkpoint silently override the user's settings."""
