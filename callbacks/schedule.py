"""In which epochs to do what would take too long in all of them."""

from lightning.pytorch import Trainer


def is_due(trainer: Trainer, every_n_epochs: int, apart: int = 1) -> bool:
    """Return whether the current epoch is the first, every n-th after it, or the last of ``max_epochs``.

    Nothing else counts, such as the time since the last one, so a resumed run does the same as one that never stopped.

    Args:
        apart: epochs from one occasion to the next; what is due between two is due on the latter, or on the last.
    """
    epoch, max_epochs = trainer.current_epoch, trainer.max_epochs or 0
    return epoch % every_n_epochs < apart or 0 < max_epochs <= epoch + apart


def is_due_in_validation(trainer: Trainer, every_n_epochs: int) -> bool:
    return is_due(trainer, every_n_epochs, trainer.check_val_every_n_epoch or 1)
