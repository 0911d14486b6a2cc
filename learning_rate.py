"""How the learning rate changes over a run: a warm-up, then a cosine."""

import math

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from epoch_means import LogsMeans


def warmup_then_cosine(module: LogsMeans, optimizer: Optimizer, warmup_steps: int) -> OptimizerLRScheduler:
    """Let the learning rate rise linearly over some steps, then follow a cosine to 0 at the end of the run.

    The end is ``max_epochs`` or ``max_steps``, whichever comes first, however many steps an epoch has.
    """

    def share(step: int) -> float:
        fall = (1 + math.cos(math.pi * min(1, progress(module, step)))) / 2 if step else 1.0
        return min((step + 1) / (warmup_steps + 1), fall)

    schedule = LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def progress(module: LogsMeans, step: int) -> float:
    """Return which share of a run is done after a step, in training; 0 if nothing says when it ends."""
    trainer = module.trainer
    epochs = trainer.current_epoch + (module.batch_idx + 1) / trainer.num_training_batches
    limits = (epochs, trainer.max_epochs or 0), (step, trainer.max_steps)
    return max((now / limit for now, limit in limits if limit > 0), default=0.0)
