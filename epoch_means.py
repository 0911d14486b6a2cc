"""What models log: means over all images of an epoch, in all processes."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric


def of_all_processes(tensor: Tensor) -> Tensor:
    """Gather a tensor from all processes and stack it: (processes, ...).

    Unlike Lightning's own functions, it has no barrier, where the host would wait for the device.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor[None]
    gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, tensor)
    return torch.stack(gathered)


class EpochMean(Metric):
    """Mean over the images of an epoch, in all processes; unlike torchmetrics' own, it never waits for the device."""

    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)  # some updates bypass torchmetrics, which would keep an old result
        for name in ("total", "num_images"):  # with bfloat16 as the default, a count would stop at 256
            self.add_state(name, torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, total: Tensor, num_images: int | Tensor) -> None:
        self.total.add_(total)
        self.num_images.add_(num_images)

    def compute(self) -> Tensor:
        return self.total / self.num_images


class LogsMeans(LightningModule):
    """A LightningModule that logs means over all images of an epoch, and every so often a training step's loss.

    A subclass with hooks of the same names calls these.

    Attributes:
        means: the epoch's :class:`EpochMean` objects so far, by the names under which they are logged at its end.
        batch_idx: which of the epoch's batches is being trained on.
    """

    batch_idx: int

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict()

    def setup(self, stage: str) -> None:
        self.means.clear()

    def on_train_start(self) -> None:
        for name, mean in self.means.items():
            if name.startswith("train/"):  # left by a search for the learning rate or the batch size
                cast(EpochMean, mean).reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps  # 0 is never
        if outputs and every and trainer.global_step % every == 0:  # at other steps Lightning would drop it
            self.log("train/loss_step", outputs["loss"] * trainer.accumulate_grad_batches)

    def log_means(self, prefix: str, values: dict[str, Tensor], num_images: int) -> None:
        """Add means over a batch's images to the means of the epoch."""
        totals = torch.stack(list(values.values())).detach() * num_images
        for name, total in zip(values, totals.unbind(), strict=True):
            self.add_to_mean(f"{prefix}{name}", total, num_images)

    def add_to_mean(self, name: str, total: Tensor, num_images: int | Tensor) -> None:
        """Add a sum over a number of images to the mean of the epoch."""
        if name not in self.means:
            self.means[name] = EpochMean().to(self.device)
        mean = cast(EpochMean, self.means[name])
        if mean.update_called:
            EpochMean.update(mean, total, num_images)  # bypasses what torchmetrics wraps around it, to save time
        else:  # once an epoch: logging costs 0.3 ms on a CPU
            is_loss = name.endswith("/loss")
            self.log(name, mean, on_epoch=True, on_step=False, prog_bar=is_loss, metric_attribute=f"means.{name}")
            mean.update(total, num_images)
