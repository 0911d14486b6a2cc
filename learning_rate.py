"""How the learning rate changes over a run: a warm-up, then a cosine."""

import math

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_then_cosine(module: LightningModule, optimizer: Optimizer, warmup_steps: int) -> OptimizerLRScheduler:
    """Let the learning rate rise linearly over some steps, then follow a cosine to 0 at the end of the run."""

    def share(step: int) -> float:
        # not at step 0: counting the steps would build the training loader before the checkpoint is restored
        fall = (1 + math.cos(math.pi * step / module.trainer.estimated_stepping_batches)) / 2 if step else 1.0
        return min((step + 1) / (warmup_steps + 1), fall)

    schedule = LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
