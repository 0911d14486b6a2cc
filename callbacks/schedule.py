"""Which epochs get what takes time."""

from lightning.pytorch import Trainer


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the epoch is one of every n, counted from the first, or the last of ``max_epochs``.

    This depends on nothing else, such as the clock, so that a run that is resumed does what it would have done.
    """
    return trainer.current_epoch % every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
