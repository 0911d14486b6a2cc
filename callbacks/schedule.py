"""In which epochs to do what would take too long in all of them."""

from lightning.pytorch import Trainer


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Return whether the current epoch is the first, every n-th after it, or the last of ``max_epochs``.

    Nothing else counts, such as the time since the last one, so a resumed run does the same as one that never stopped.
    """
    return trainer.current_epoch % every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
