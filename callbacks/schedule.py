"""In which epochs to do what would take too long in all of them."""

from lightning.pytorch import Trainer


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Return whether the current epoch is the first, every n-th after it, or the last of ``max_epochs``.

    Under ``check_val_every_n_epoch``, so are the epochs after it up to the next validation, or before the last one.

    Nothing else counts, such as the time since the last one, so a resumed run does the same as one that never stopped.
    """
    epoch, max_epochs, apart = trainer.current_epoch, trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
    return epoch % every_n_epochs < apart or 0 < max_epochs <= epoch + apart
